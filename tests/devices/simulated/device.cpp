// A device whose memory the processor cannot read, as torch's PrivateUse1 backend.
//
// One region of memory is mapped twice: tensors hold addresses of the mapping that nobody may touch, so that whoever takes a
// tensor's address for the processor's own ends the run; operators run on the processor, through the mapping that may be
// touched. What makes the host wait for the device (numbers that go to the host, sizes that depend on numbers) is counted.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <array>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

namespace {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;
constexpr size_t BYTES = size_t(8) << 30;  // of addresses; memory is taken where it is written

bool without_float64 = false;
int64_t waits = 0;
std::vector<std::string> who_waited;
thread_local int inside = 0;  // an operator of the device's own is running: what it copies is its own affair

void note_wait(const std::string& name) {
    if (inside == 0) {
        ++waits;
        who_waited.push_back(name);
    }
}

struct Inside {
    Inside() { ++inside; }
    ~Inside() { --inside; }
};

// Memory ------------------------------------------------------------------------------------------------------------------------

class Memory {
  public:
    static Memory& get() {
        static Memory memory;
        return memory;
    }

    void* take(size_t bytes) {
        const int kind = kind_of(bytes);
        std::lock_guard<std::mutex> lock(mutex_);
        if (!free_[kind].empty()) {
            void* found = free_[kind].back();
            free_[kind].pop_back();
            return found;
        }
        const size_t size = size_t(1) << kind;
        TORCH_CHECK(used_ + size <= BYTES, "the simulated device is out of memory");
        void* fresh = closed_ + used_;
        used_ += size;
        return fresh;
    }

    void give(void* address, size_t bytes) {
        std::lock_guard<std::mutex> lock(mutex_);
        free_[kind_of(bytes)].push_back(address);
    }

    char* open(const void* address) const {
        return open_ + (static_cast<const char*>(address) - closed_);
    }

  private:
    Memory() {
        const int file = memfd_create("simulated", 0);
        TORCH_CHECK(file >= 0 && ftruncate(file, BYTES) == 0, "no memory for the simulated device");
        closed_ = map(file, PROT_NONE);
        open_ = map(file, PROT_READ | PROT_WRITE);
        close(file);
    }

    static char* map(int file, int protection) {
        void* found = mmap(nullptr, BYTES, protection, MAP_SHARED | MAP_NORESERVE, file, 0);
        TORCH_CHECK(found != MAP_FAILED, "no memory for the simulated device");
        return static_cast<char*>(found);
    }

    static int kind_of(size_t bytes) {
        int kind = 8;
        while ((size_t(1) << kind) < bytes) {
            ++kind;
        }
        return kind;
    }

    char *closed_, *open_;
    size_t used_ = 0;
    std::array<std::vector<void*>, 64> free_;
    std::mutex mutex_;
};

struct Allocation {
    void* address;
    size_t bytes;
};

void release(void* context) {
    auto* allocation = static_cast<Allocation*>(context);
    Memory::get().give(allocation->address, allocation->bytes);
    delete allocation;
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        const c10::Device device(DEVICE, 0);
        if (bytes == 0) {
            return {nullptr, device};
        }
        auto* allocation = new Allocation{Memory::get().take(bytes), bytes};
        return {allocation->address, allocation, &release, device};
    }
    c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
    void copy_data(void* to, const void* from, std::size_t count) const override {
        std::memcpy(Memory::get().open(to), Memory::get().open(from), count);
    }
};

Allocator allocator;
REGISTER_ALLOCATOR(DEVICE, &allocator);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DEVICE> {
    c10::Device exchangeDevice(c10::Device) const override { return {DEVICE, 0}; }
    c10::Device getDevice() const override { return {DEVICE, 0}; }
    c10::Stream getStream(c10::Device) const noexcept override {
        return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEVICE, 0));
    }
    c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream({DEVICE, 0}); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

at::Generator& random_numbers() {
    static at::Generator generator = at::detail::createCPUGenerator(0);
    return generator;
}

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
    const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return random_numbers(); }
};

// Operators ---------------------------------------------------------------------------------------------------------------------

void refuse_float64(at::ScalarType dtype) {
    TORCH_CHECK_TYPE(
        !(without_float64 && (dtype == at::kDouble || dtype == at::kComplexDouble)),
        "Cannot convert a simulated Tensor to float64 dtype as the simulated framework doesn't support float64.");
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
    const auto kind = c10::dtype_or_default(dtype);
    refuse_float64(kind);
    return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), kind, format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
    const auto kind = c10::dtype_or_default(dtype);
    refuse_float64(kind);
    return at::detail::empty_strided_generic(
        size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), kind);
}

// The same numbers as the processor sees them.
at::Tensor seen(const at::Tensor& tensor) {
    if (!tensor.is_privateuseone() || tensor.numel() == 0) {
        return tensor.is_privateuseone() ? at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU))
                                         : tensor;
    }
    at::Tensor found = at::from_blob(
        Memory::get().open(tensor.data_ptr()), tensor.sizes(), tensor.strides(), [](void*) {},
        tensor.options().device(at::kCPU).requires_grad(false), at::kCPU);
    found = tensor.is_conj() ? found.conj() : found;
    return tensor.is_neg() ? found._neg_view() : found;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool non_blocking) {
    if (source.is_privateuseone() && !target.is_privateuseone()) {
        note_wait("a copy to the host");
    }
    seen(target).copy_(seen(source));
    return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
    if (target.sizes() != source.sizes()) {
        const_cast<at::Tensor&>(target).resize_(source.sizes());
    }
    return copy_from(source, target, false);
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_sizes_contiguous(size);
    if (format.has_value() && *format != at::MemoryFormat::Preserve) {
        impl->empty_tensor_restride(*format);
    }
    const size_t needed = (size_t(impl->numel()) + impl->storage_offset()) * impl->itemsize();
    auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    if (storage->nbytes() < needed) {
        auto fresh = allocator.allocate(needed);
        if (storage->nbytes() != 0) {
            allocator.copy_data(fresh.get(), storage->data_ptr().get(), storage->nbytes());
        }
        storage->set_data_ptr_noswap(std::move(fresh));
        storage->set_nbytes(needed);
    }
    return self;
}

at::Tensor view_of(
    const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
    auto result = at::detail::make_tensor<c10::TensorImpl>(
        c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
    auto* impl = result.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(size, stride, offset.value_or(self.storage_offset()));
    return result;
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef size) {
    // Strides of a view are worked out where no numbers are needed.
    at::Tensor shape = at::empty_strided(self.sizes(), self.strides(), self.options().device(at::kMeta)).view(size);
    return view_of(self, shape.sizes(), shape.strides(), self.storage_offset());
}

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
    return view_of(self, size, stride, self.storage_offset());
}

using Sizes = at::IntArrayRef;

at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Sizes stride, Sizes padding,
    Sizes dilation, bool transposed, Sizes output_padding, int64_t groups) {
    std::optional<at::Tensor> shift;
    if (bias.has_value() && bias->defined()) {
        shift = seen(*bias);
    }
    return at::convolution(
               seen(input), seen(weight), shift, stride, padding, dilation, transposed, output_padding, groups)
        .to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, Sizes stride, Sizes padding, Sizes dilation,
    bool transposed, Sizes output_padding, int64_t groups, std::array<bool, 3> wanted) {
    const std::array<int64_t, 1> bias = {grad.size(1)};
    auto [x, w, b] = at::convolution_backward(
        seen(grad), seen(input), seen(weight), at::OptionalIntArrayRef(bias), stride, padding, dilation, transposed,
        output_padding, groups, wanted);
    const auto back = [&](const at::Tensor& found) { return found.defined() ? found.to(grad.device()) : found; };
    return {back(x), back(w), back(b)};
}

// Its schema names no generator, so that it would draw from the processor's.
std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& input, double p, std::optional<bool> train) {
    if (!train.value_or(true)) {
        return {input.clone(), at::ones_like(input, at::kBool)};
    }
    const auto kept = at::empty_like(input).bernoulli_(1 - p, random_numbers());
    return {input * kept / (1 - p), kept.to(at::kBool)};
}

// Recurrent cells: torch asks other devices than the processor for these whole.

at::Tensor sum_of(const at::Tensor& gates, const std::optional<at::Tensor>& bias) {
    return bias.has_value() && bias->defined() ? gates + *bias : gates;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& from_input, const at::Tensor& from_hidden, const at::Tensor& cell,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
    const auto gates = (sum_of(from_input, input_bias) + sum_of(from_hidden, hidden_bias)).chunk(4, 1);
    const auto in = gates[0].sigmoid(), keep = gates[1].sigmoid(), fresh = gates[2].tanh(), out = gates[3].sigmoid();
    const auto next = keep * cell + in * fresh;
    return {out * next.tanh(), next, at::cat({in, keep, fresh, out}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const std::optional<at::Tensor>& hidden_grad, const std::optional<at::Tensor>& cell_grad, const at::Tensor& cell,
    const at::Tensor& next, const at::Tensor& workspace, bool has_bias) {
    const auto parts = workspace.chunk(4, 1);
    const auto &in = parts[0], &keep = parts[1], &fresh = parts[2], &out = parts[3];
    const auto squashed = next.tanh();
    auto out_grad = at::zeros_like(next), next_grad = at::zeros_like(next);
    if (hidden_grad.has_value() && hidden_grad->defined()) {
        out_grad = *hidden_grad * squashed;
        next_grad = *hidden_grad * out * (1 - squashed * squashed);
    }
    if (cell_grad.has_value() && cell_grad->defined()) {
        next_grad = next_grad + *cell_grad;
    }
    const auto gates = at::cat(
        {next_grad * fresh * in * (1 - in), next_grad * cell * keep * (1 - keep), next_grad * in * (1 - fresh * fresh),
         out_grad * out * (1 - out)}, 1);
    return {gates, next_grad * keep, has_bias ? gates.sum(0) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& from_input, const at::Tensor& from_hidden, const at::Tensor& hidden,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
    const auto first = sum_of(from_input, input_bias).chunk(3, 1), second = sum_of(from_hidden, hidden_bias).chunk(3, 1);
    const auto reset = (first[0] + second[0]).sigmoid(), keep = (first[1] + second[1]).sigmoid();
    const auto fresh = (first[2] + reset * second[2]).tanh();
    return {fresh + keep * (hidden - fresh), at::cat({reset, keep, fresh, hidden, second[2]}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad, const at::Tensor& workspace, bool has_bias) {
    const auto parts = workspace.chunk(5, 1);
    const auto &reset = parts[0], &keep = parts[1], &fresh = parts[2], &hidden = parts[3], &inner = parts[4];
    const auto fresh_grad = grad * (1 - keep) * (1 - fresh * fresh);
    const auto keep_grad = grad * (hidden - fresh) * keep * (1 - keep);
    const auto reset_grad = fresh_grad * inner * reset * (1 - reset);
    const auto first = at::cat({reset_grad, keep_grad, fresh_grad}, 1);
    const auto second = at::cat({reset_grad, keep_grad, fresh_grad * reset}, 1);
    return {first, second, grad * keep, has_bias ? first.sum(0) : at::Tensor(), has_bias ? second.sum(0) : at::Tensor()};
}

at::Scalar local_scalar(const at::Tensor& self) {
    note_wait("item");
    return at::_local_scalar_dense(seen(self));
}

bool equal(const at::Tensor& self, const at::Tensor& other) {
    note_wait("equal");
    return at::equal(seen(self), seen(other));
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(source);
    impl->set_storage_offset(offset);
    impl->set_sizes_and_strides(size, stride, offset);
    return self;
}

// Operators whose result has as many elements as the numbers say: a device must be waited for.
const std::unordered_set<std::string> WAITS = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
    "aten::repeat_interleave", "aten::bincount", "aten::_unique", "aten::is_nonzero"};

void on_the_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    if (WAITS.count(schema.name())) {
        note_wait(schema.name());
    }
    // Random numbers come from the device's own generator.
    const size_t count = schema.arguments().size(), first = stack->size() - count;
    for (size_t k = 0; k < count; ++k) {
        if (schema.arguments()[k].name() == "generator" && (*stack)[first + k].isNone()) {
            (*stack)[first + k] = c10::IValue(random_numbers());
        }
    }
    Inside running;
    at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_from_and_resize);
    m.impl("resize_", resize);
    m.impl("as_strided", view_of);
    m.impl("view", view);
    m.impl("_reshape_alias", reshape_alias);
    m.impl("_local_scalar_dense", local_scalar);
    m.impl("equal", equal);
    m.impl("native_dropout", dropout);
    m.impl("_thnn_fused_lstm_cell", lstm_cell);
    m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
    m.impl("_thnn_fused_gru_cell", gru_cell);
    m.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
    m.impl("convolution_overrideable", convolution);
    m.impl("convolution_backward_overrideable", convolution_backward);
    m.impl("set_.source_Storage_storage_offset", set_storage);
}

// Copies see for themselves whether a tensor is conjugate or negative.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
    m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_processor>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
    m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
    KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(layer_norm, fp32)
    KERNEL_PRIVATEUSEONE(group_norm, fp32)
    KERNEL_PRIVATEUSEONE(mse_loss, fp32)
    KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
}

// What Python asks ---------------------------------------------------------------------------------------------------------------

void register_hooks() {
    static Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
}

void refuse_wide(bool refuse) { without_float64 = refuse; }

int64_t count_waits() {
    const int64_t found = waits;
    waits = 0;
    return found;
}

std::string name_waits() {
    std::string text;
    for (const auto& name : who_waited) {
        text += (text.empty() ? "" : ", ") + name;
    }
    who_waited.clear();
    return text;
}

at::Tensor random_state() {
    std::lock_guard<std::mutex> lock(random_numbers().mutex());
    return random_numbers().get_state();
}

void set_random_state(const at::Tensor& state) {
    at::Generator generator = random_numbers();
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
}

void seed(int64_t value) {
    at::Generator generator = random_numbers();
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(value);
}

TORCH_LIBRARY(simulated, m) {
    m.def("register_hooks", &register_hooks);
    m.def("refuse_wide", &refuse_wide);
    m.def("count_waits", &count_waits);
    m.def("name_waits", &name_waits);
    m.def("random_state", &random_state);
    m.def("set_random_state", &set_random_state);
    m.def("seed", &seed);
}

}  // namespace
