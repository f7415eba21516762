// Kernels of attention, in the form of kernels.h.
#pragma once

#define GS_ATTENTION_KERNELS(KERNEL)
