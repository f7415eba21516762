// Runs every kernel on every instruction set of this processor, over buffers that touch a forbidden page,
// and compares with plain double arithmetic. `make sanitize` builds it with sanitizers. It prints the
// instruction set that dispatch chose and a line per set.
#include <initializer_list>

#include <thread>

#include "test_support.h"

bool buffers_end_at_page = true;

// An OpenMP of our own: shares, per-thread memory and the meetings of a team are tested
// without a runtime that sanitizers do not know.
namespace {
thread_local int n_members = 1, member = 0;
}
extern "C" {
int omp_get_max_threads(void) { return 3; }
int omp_get_thread_num(void) { return member; }
int omp_get_num_threads(void) { return n_members; }
int omp_in_parallel(void) { return n_members > 1; }
void GOMP_parallel(void (*body)(void*), void* data, unsigned n_threads, unsigned) {
    auto run = [=](int number) {
        n_members = (int)n_threads, member = number;
        body(data);
        n_members = 1, member = 0;
    };
    std::vector<std::thread> others;
    for (int number = 1; number < (int)n_threads; number++) others.emplace_back(run, number);
    run(0);
    for (std::thread& other : others) other.join();
}
}

namespace {

const int64_t WIDTHS[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 96, 257};
const int64_t ROWS[] = {1, 3, 70};

// Call run(rows, width, dtype) for every shape and dtype.
template <class Run>
void over_shapes(const Run& run) {
    for (int64_t rows : ROWS)
        for (int64_t width : WIDTHS)
            for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16}) run(rows, width, dtype);
}

double scale_of(Numbers& x, int64_t row, int64_t width, double eps) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++) sum += x[row * width + i] * x[row * width + i];
    return 1.0 / sqrt(sum / (double)width + eps);
}

void test_rms_norm() {
    over_shapes([](int64_t rows, int64_t width, int32_t dtype) {
        Numbers x(rows * width, dtype, 3.0f, 1), residual(rows * width, dtype, 2.0f, 2), weight(width, dtype, 0.5f, 3);
        Numbers out(rows * width, dtype), sum(rows * width, dtype);
        gs_rms_norm(x.data(), weight.data(), nullptr, out.data(), rows, width, 1e-6f, dtype, dtype);
        gs_rms_norm(x.data(), weight.data(), residual.data(), sum.data(), rows, width, 1e-6f, dtype, dtype);
        for (int64_t i = 0; i < rows * width; i++) {
            double wanted = x[i] * scale_of(x, i / width, width, 1e-6) * (1.0 + weight[i % width]);
            expect("rms_norm", out[i], wanted, dtype);
            expect("norm_add", sum[i], residual[i] + wanted, dtype);
        }
    });
}

void test_rms_norm_backward() {
    over_shapes([](int64_t rows, int64_t width, int32_t dtype) {
        Numbers x(rows * width, dtype, 3.0f, 4), grad(rows * width, dtype, 1.0f, 5), weight(width, GS_FLOAT32, 0.5f, 6);
        Numbers dx(rows * width, dtype);
        Guarded<float> dweight(width), parts(GS_NORM_PARTS * width);
        gs_rms_norm_backward(grad.data(), x.data(), weight.data(), dx.data(), dweight.data(), parts.data(), rows, width,
                             1e-6f, dtype, GS_FLOAT32);
        std::vector<double> wanted(width);
        for (int64_t row = 0; row < rows; row++) {
            double scale = scale_of(x, row, width, 1e-6), dot = 0;
            for (int64_t i = 0; i < width; i++)
                dot += grad[row * width + i] * (1.0 + weight[i]) * x[row * width + i] / (double)width;
            for (int64_t i = 0; i < width; i++) {
                double a = x[row * width + i], g = grad[row * width + i];
                expect("rms_norm dx", dx[row * width + i], scale * (g * (1.0 + weight[i]) - a * scale * scale * dot),
                       dtype, 1.0 + scale);
                wanted[i] += g * a * scale;
            }
        }
        for (int64_t i = 0; i < width; i++) expect("rms_norm dweight", dweight[i], wanted[i], GS_FLOAT32, (double)rows);
    });
}

void test_rotate() {
    over_shapes([](int64_t tokens, int64_t half, int32_t dtype) {
        const int64_t heads = 3, size = 2 * half, gap = 5;
        int64_t head_stride = size + gap, token_stride = heads * head_stride;
        Numbers x(tokens * token_stride - gap, dtype, 2.0f, 7), out(tokens * heads * size, dtype);
        Numbers c(tokens * half, GS_FLOAT32, 1.0f, 8), s(tokens * half, GS_FLOAT32, 1.0f, 9);
        for (float direction : {1.0f, -1.0f}) {
            gs_rotate(x.data(), (float*)c.data(), (float*)s.data(), out.data(), tokens, heads, size, token_stride,
                      head_stride, 0.7f, direction, dtype);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t i = 0; i < heads * half; i++) {
                    int64_t head = i / half, pair = i % half, at = t * token_stride + head * head_stride + pair;
                    double a = x[at], b = x[at + half], cosine = c[t * half + pair] * 0.7,
                           sine = s[t * half + pair] * 0.7 * direction;
                    expect("rotate", out[(t * heads + head) * size + pair], a * cosine - b * sine, dtype);
                    expect("rotate", out[(t * heads + head) * size + pair + half], b * cosine + a * sine, dtype);
                }
        }
    });
}

double gelu(double x) { return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); }

void test_gated_gelu() {
    over_shapes([](int64_t rows, int64_t width, int32_t dtype) {
        int64_t stride = 2 * width;
        Numbers both(rows * stride, dtype, 6.0f, 10), grad(rows * width, dtype, 1.0f, 11);
        Numbers out(rows * width, dtype), gradient(rows * stride, dtype);
        size_t half = width * (dtype ? 2 : 4);
        char *gate = (char*)both.data(), *dgate = (char*)gradient.data();
        gs_gated_gelu(gate, gate + half, out.data(), rows, width, stride, stride, dtype);
        gs_gated_gelu_backward(grad.data(), gate, gate + half, dgate, dgate + half, rows, width, width, stride, stride,
                               stride, dtype);
        for (int64_t i = 0; i < rows * width; i++) {
            int64_t at = i / width * stride + i % width;
            double x = both[at], up = both[at + width], g = grad[i], small = 1e-5;
            double slope = (gelu(x + small) - gelu(x - small)) / (2 * small);
            expect("gated_gelu", out[i], gelu(x) * up, dtype);
            expect("gated_gelu dgate", gradient[at], g * up * slope, dtype);
            expect("gated_gelu dup", gradient[at + width], g * gelu(x), dtype);
        }
    });
}

void check_loss(int64_t rows, int64_t width, int32_t dtype, double cap) {
    Numbers logits(rows * width, dtype, 20.0f, 12), kept(rows * width, dtype, 20.0f, 12);
    Guarded<int64_t> targets(rows);
    for (int64_t row = 0; row < rows; row++) targets[row] = row % 2 ? width - 1 : row % width;
    Guarded<double> loss(rows);
    Guarded<float> scratch(dtype ? gs_max_threads() * width : 0);
    gs_loss_and_gradient(logits.data(), targets.data(), loss.data(), scratch.data(), rows, width, (float)cap, 1e-3f, dtype);
    auto capped = [&](int64_t at) { return cap > 0 ? cap * tanh(kept[at] / cap) : kept[at]; };
    for (int64_t row = 0; row < rows; row++) {
        double sum = 0;
        for (int64_t i = 0; i < width; i++) sum += exp(capped(row * width + i));
        double normalizer = log(sum);
        expect("loss", loss[row],
               normalizer - capped(row * width + targets[row]) + 1e-3 * normalizer * normalizer, GS_FLOAT32, 10.0);
        for (int64_t i = 0; i < width; i++) {
            double c = capped(row * width + i), slope = cap > 0 ? 1.0 - (c / cap) * (c / cap) : 1.0;
            double wanted = exp(c - normalizer) * (1.0 + 2e-3 * normalizer) - (i == targets[row]);
            expect("loss gradient", logits[row * width + i], wanted * slope, dtype);
        }
    }
}

void test_loss() {
    over_shapes([](int64_t rows, int64_t width, int32_t dtype) {
        check_loss(rows, width, dtype, 0.0);
        check_loss(rows, width, dtype, 15.0);
    });
}

void test_adamw() {
    for (int64_t n : {1, 15, 16, 33, 1024, 50001})
        for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16}) {
            Numbers p(n, 0, 1.0f, 13), m(n, 0, 0.1f, 14), v(n, 0, 0.0f, 15), grad(n, dtype, 1.0f, 16);
            Numbers before(n, 0, 1.0f, 13), first(n, 0, 0.1f, 14);
            for (int64_t i = 0; i < n; i++) v.set(i, 0.01f);
            gs_adamw((float*)p.data(), (float*)m.data(), (float*)v.data(), grad.data(), n, 0.99f, 0.9f, 0.95f, 1e-8f,
                     0.02f, 0.5f, 2.0f, dtype);
            for (int64_t i = 0; i < n; i++) {
                double g = 2.0 * grad[i], mean = 0.9 * first[i] + 0.1 * g, square = 0.95 * 0.01 + 0.05 * g * g;
                expect("adamw exp_avg", m[i], mean, 0);
                expect("adamw exp_avg_sq", v[i], square, 0);
                expect("adamw weight", p[i], 0.99 * before[i] - 0.02 * mean / (sqrt(square) / 0.5 + 1e-8), 0);
            }
        }
}

void test_sum_of_squares() {
    for (int64_t n : {1, 17, 65536, 65537, 200001})
        for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16}) {
            Numbers x(n, dtype, 2.0f, 17);
            Guarded<double> parts((n + GS_SUM_BLOCK - 1) / GS_SUM_BLOCK);
            gs_sum_of_squares(x.data(), parts.data(), n, dtype);
            double found = 0, wanted = 0;
            for (size_t i = 0; i < parts.size(); i++) found += parts[i];
            for (int64_t i = 0; i < n; i++) wanted += x[i] * x[i];
            if (fabs(found - wanted) > 1e-12 * wanted) expect("sum_of_squares", 0.0, 1e9, 0);
        }
}

const Test TESTS[] = {{"rms_norm", test_rms_norm},     {"rms_norm_backward", test_rms_norm_backward},
                      {"rotate", test_rotate},         {"gated_gelu", test_gated_gelu},
                      {"loss", test_loss},             {"adamw", test_adamw},
                      {"sum_of_squares", test_sum_of_squares}};

}  // namespace

int main() {
    printf("dispatch chose %s of %s\n", gs_isa(), gs_available());
    if (!gs_share_openmp(nullptr)) return fprintf(stderr, "the program's own OpenMP was not found\n"), 1;
    if (gs_select("none") != 1) return fprintf(stderr, "an unknown instruction set was accepted\n"), 1;
    char names[64];
    strcpy(names, gs_available());
    for (char* name = strtok(names, ","); name; name = strtok(nullptr, ",")) {
        if (gs_select(name) != 0) return fprintf(stderr, "%s cannot be selected\n", name), 1;
        for (bool at_end : {true, false}) {
            buffers_end_at_page = at_end;
            for (const Test::Entry& test : Test::list()) test.run();
        }
        printf("%s:", name);
        for (const Test::Entry& test : Test::list()) printf(" %s", test.name);
        printf(" ok\n");
        fflush(stdout);
    }
    return 0;
}
