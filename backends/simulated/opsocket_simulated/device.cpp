// A torch device (PrivateUse1) whose memory nobody can touch but while work of the device runs.
//
// Each allocation lies in pages of its own, between pages that are never accessible, its end at most 255 bytes before
// the second of them. Its pages are accessible while an operation, a copy or a launch that was given it runs, and at no
// other time. New memory holds a poison; freed memory stays inaccessible, and its addresses are not used again.
//
// Every operation runs the CPU's kernel on the same bytes, at once: there is no queue, and so no missing wait to see.
// What the host learns from the device, sends to it or waits for is counted.

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/item.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <unordered_map>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 16;
constexpr size_t kAlignment = 256;             // as CUDA's and HIP's allocators promise it
constexpr uint16_t kPoison = 0xFFF5;           // NaN as f64, f32, bf16 and f16; -655371 as i32
constexpr size_t kReserved = size_t{1} << 36;  // address space taken from the system at a time
const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));

enum Count { kLiveBytes, kPeakBytes, kAllocations, kReads, kWrites, kWaits, kKernels, kLaunches, kCounts };

struct Device {
    std::array<int64_t, kCounts> counts{};
    int64_t limit = INT64_MAX;
};

// host: the same bytes as a storage of the CPU, so that views of one allocation are seen to overlap there too.
struct Block {
    char *pages;
    size_t length;
    char *data;
    size_t bytes;
    c10::DeviceIndex device;
    int opened;
    c10::Storage host;
};

// Never destroyed: tensors may be freed after static objects are.
struct State {
    std::mutex mutex;
    std::array<Device, kDevices> devices;
    std::unordered_map<const void *, Block *> blocks;  // by `data`
    char *next = nullptr;
    char *end = nullptr;
};
State &state() {
    static State *const made = new State;
    return *made;
}
thread_local c10::DeviceIndex current = 0;
thread_local std::array<std::array<int64_t, kCounts>, kDevices> mine{};

// Of all threads, and of this one, which knows by it what it did itself.
void add(c10::DeviceIndex device, Count what) {
    mine[device][what]++;
    std::lock_guard<std::mutex> lock(state().mutex);
    state().devices[device].counts[what]++;
}

size_t up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// Inaccessible pages that nobody had before, with one more on each side. The mutex is held.
char *take_pages(size_t length) {
    State &s = state();
    const size_t need = length + kPage;
    if (static_cast<size_t>(s.end - s.next) < need) {
        for (size_t size : {std::max(kReserved, need + kPage), need + kPage}) {
            void *got = mmap(nullptr, size, PROT_NONE, kPrivate, -1, 0);
            if (got != MAP_FAILED) {
                s.next = static_cast<char *>(got) + kPage;
                s.end = static_cast<char *>(got) + size;
                break;
            }
        }
        TORCH_CHECK_WITH(OutOfMemoryError, static_cast<size_t>(s.end - s.next) >= need,
                         "simulated device: no addresses left for ", length, " bytes");
    }
    char *pages = s.next;
    s.next += need;
    return pages;
}

void protect(const Block &block, int how) {
    TORCH_CHECK(mprotect(block.pages, block.length, how) == 0, "simulated device: mprotect of ", block.length,
                " bytes failed; see vm.max_map_count");
}

void release(void *context) {
    auto *block = static_cast<Block *>(context);
    State &s = state();
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        // Fresh pages over the old ones give the memory back and keep the addresses inaccessible.
        mmap(block->pages, block->length, PROT_NONE, kPrivate | MAP_FIXED, -1, 0);
        s.blocks.erase(block->data);
        s.devices[block->device].counts[kLiveBytes] -= static_cast<int64_t>(block->bytes);
    }
    delete block;
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        const c10::Device device(kType, current);
        if (bytes == 0) return {nullptr, nullptr, &release_nothing, device};
        State &s = state();
        std::lock_guard<std::mutex> lock(s.mutex);
        auto &[counts, limit] = s.devices[current];
        const int64_t live = counts[kLiveBytes] + static_cast<int64_t>(bytes);
        TORCH_CHECK_WITH(OutOfMemoryError, live <= limit && live >= 0, "simulated device: ", bytes, " bytes wanted, ",
                         limit - counts[kLiveBytes], " of ", limit, " free");
        const size_t length = up(bytes, kPage);
        char *pages = take_pages(length);
        char *data = pages + length - up(bytes, kAlignment);
        auto *block = new Block{pages, length, data, bytes, current, 0, {}};
        protect(*block, PROT_READ | PROT_WRITE);
        std::fill_n(reinterpret_cast<uint16_t *>(pages), length / 2, kPoison);
        protect(*block, PROT_NONE);
        block->host = c10::Storage(c10::Storage::use_byte_size_t(), bytes, c10::DataPtr(data, c10::Device(c10::kCPU)),
                                   nullptr, false);
        s.blocks[data] = block;
        counts[kLiveBytes] = live;
        counts[kPeakBytes] = std::max(counts[kPeakBytes], live);
        counts[kAllocations]++;
        return {data, block, &release, device};
    }
    static void release_nothing(void *) {}
    c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
    void copy_data(void *, const void *, size_t) const override {
        TORCH_CHECK(false, "simulated device: a storage is copied by copy_ alone");
    }
};
Allocator allocator;

Block *block_of(const c10::Storage &storage) {
    const c10::DataPtr &pointer = storage.data_ptr();
    if (pointer.get() == nullptr) return nullptr;
    TORCH_CHECK(pointer.get_deleter() == &release, "simulated device: memory that it did not allocate");
    return static_cast<Block *>(pointer.get_context());
}

void open_one(Block *block) {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (block->opened == 0) protect(*block, PROT_READ | PROT_WRITE);
    block->opened++;
}
void close_one(Block *block) {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (--block->opened == 0) protect(*block, PROT_NONE);
}

// Accessible from `add` on until the end of the scope.
class Opened {
  public:
    Opened() = default;
    Opened(const Opened &) = delete;
    ~Opened() {
        for (Block *block : blocks_) close_one(block);
    }
    void add(const at::Tensor &tensor) {
        Block *block = block_of(tensor.storage());
        if (block == nullptr || std::find(blocks_.begin(), blocks_.end(), block) != blocks_.end()) return;
        open_one(block);
        blocks_.push_back(block);
    }

  private:
    c10::SmallVector<Block *, 8> blocks_;
};

class On {
  public:
    explicit On(c10::DeviceIndex device) : before_(current) { current = device; }
    ~On() { current = before_; }

  private:
    c10::DeviceIndex before_;
};

bool is_ours(const at::Tensor &tensor) { return tensor.defined() && tensor.device().type() == kType; }

// The same bytes as a tensor of the CPU. Without elements: a new one, which a kernel may resize.
at::Tensor on_host(const at::Tensor &tensor) {
    const auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
    Block *block = block_of(tensor.storage());
    if (block == nullptr || tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
    auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(block->host),
                                                     c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    impl->set_storage_offset(tensor.storage_offset());
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides());
    at::Tensor host(std::move(impl));
    if (tensor.is_neg()) host._set_neg(true);
    if (tensor.is_conj()) host._set_conj(true);
    return host;
}

// ---- making, viewing and moving

c10::DeviceIndex index_of(std::optional<at::Device> device) {
    return device && device->has_index() ? device->index() : current;
}

void check_pinning(std::optional<bool> pinned) {
    TORCH_CHECK(!pinned.value_or(false), "simulated device: only memory of the host is pinned");
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
    check_pinning(pinned);
    On on(index_of(device));
    return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                     c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool> pinned) {
    check_pinning(pinned);
    On on(index_of(device));
    return at::detail::empty_strided_generic(
        size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

at::Tensor view(const at::Tensor &self, c10::IntArrayRef size) { return at::native::view(self, size); }

at::Tensor reshape_alias(const at::Tensor &self, c10::IntArrayRef size, c10::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
}

at::Tensor as_strided(const at::Tensor &self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

const at::Tensor &resize_(const at::Tensor &self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
    TORCH_CHECK(!format || *format == at::MemoryFormat::Contiguous,
                "simulated device: resize_ is to contiguous sizes only");
    c10::StorageImpl *storage = self.storage().unsafeGetStorageImpl();
    const size_t need = self.element_size() * (c10::multiply_integers(size) + self.storage_offset());
    if (storage->nbytes() < need) {
        On on(self.device().index());
        c10::DataPtr wider = allocator.allocate(need);
        if (storage->nbytes() > 0) {
            auto *to = static_cast<Block *>(wider.get_context());
            auto *from = block_of(self.storage());
            open_one(to), open_one(from);
            std::memcpy(to->data, from->data, from->bytes);
            close_one(to), close_one(from);
        }
        storage->set_data_ptr_noswap(std::move(wider));
        storage->set_nbytes(need);
    }
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    return self;
}

at::Tensor &set_storage(at::Tensor &self, at::Storage storage, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
    TORCH_CHECK(storage.device() == self.device(), "simulated device: a storage on ", storage.device(),
                " for a tensor on ", self.device());
    self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
    self.unsafeGetTensorImpl()->set_storage_offset(offset);
    if (stride.empty()) {
        self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    } else {
        self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
    }
    return self;
}

at::Tensor copy_from(const at::Tensor &self, const at::Tensor &target, bool) {
    const bool from = is_ours(self), to = is_ours(target);
    if (from && to && self.device() == target.device()) {
        add(self.device().index(), kKernels);
    } else {
        if (from) add(self.device().index(), kReads);
        if (to) add(target.device().index(), kWrites);
    }
    Opened opened;
    if (from) opened.add(self);
    if (to) opened.add(target);
    (to ? on_host(target) : target).copy_(from ? on_host(self) : self);
    return target;
}

at::Tensor copy_from_and_resize(const at::Tensor &self, const at::Tensor &target) {
    target.resize_(self.sizes());
    return copy_from(self, target, false);
}

at::Scalar local_scalar(const at::Tensor &self) {
    add(self.device().index(), kReads);
    Opened opened;
    opened.add(self);
    return on_host(self).item();
}

// Where a GPU would pick one of its own kernels for attention, this one composes it.
int64_t sdp_choice(const at::Tensor &, const at::Tensor &, const at::Tensor &, const std::optional<at::Tensor> &,
                   double, bool, std::optional<double>, bool) {
    return 0;
}

// ---- everything else: the CPU's kernel

// One tensor argument. An argument that was written is given back as the caller's own tensor.
struct Argument {
    at::Tensor given;
    at::Tensor host;
    bool is_written;
};

class Call {
  public:
    explicit Call(const c10::OperatorHandle &op) : op_(op) {}

    void run(torch::jit::Stack *stack) {
        const auto &schema = op_.schema();
        const size_t arguments = schema.arguments().size(), first = stack->size() - arguments;
        for (size_t i = 0; i < arguments; i++)
            (*stack)[first + i] = converted((*stack)[first + i], is_written(schema.arguments()[i]));
        TORCH_CHECK(device_ >= 0, op_.schema().name(), ": no argument on the simulated device");
        check_host_arguments();
        add(device_, kKernels);
        if (shape_depends_on_content(*stack, first)) add(device_, kWaits);
        op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
        for (auto &argument : arguments_) settle(argument);
        const size_t returns = schema.returns().size();
        for (size_t i = stack->size() - returns; i < stack->size(); i++) (*stack)[i] = given_back((*stack)[i]);
    }

  private:
    static bool is_written(const c10::Argument &argument) {
        return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    }

    c10::IValue converted(const c10::IValue &value, bool written) {
        if (value.isTensor()) return one(value.toTensor(), written);
        if (value.isTensorList()) {
            c10::List<at::Tensor> hosts;
            for (const at::Tensor &tensor : value.toTensorVector()) hosts.push_back(one(tensor, written));
            return hosts;
        }
        if (value.isOptionalTensorList()) {
            c10::List<std::optional<at::Tensor>> hosts;
            for (const std::optional<at::Tensor> &tensor : value.toOptionalTensorVector()) {
                hosts.push_back(tensor ? std::optional<at::Tensor>(one(*tensor, written)) : std::nullopt);
            }
            return hosts;
        }
        if (value.isDevice() && value.toDevice().type() == kType) {
            on(index_of(value.toDevice()));
            return c10::Device(c10::kCPU);
        }
        return value;
    }

    at::Tensor one(const at::Tensor &tensor, bool written) {
        if (!tensor.defined()) return tensor;
        if (!is_ours(tensor)) {
            // A number that the host knows is a parameter; anything else would be moved by a GPU, or read where it
            // can't be.
            if (tensor.dim() > 0 || written) foreign_.push_back(tensor.device());
            return tensor;
        }
        on(tensor.device().index());
        opened_.add(tensor);
        arguments_.push_back({tensor, on_host(tensor), written});
        return arguments_.back().host;
    }

    void on(c10::DeviceIndex device) {
        TORCH_CHECK(device_ < 0 || device_ == device, op_.schema().name(),
                    ": expected all tensors to be on the same device, found ", c10::Device(kType, device_), " and ",
                    c10::Device(kType, device));
        device_ = device;
    }

    void check_host_arguments() const {
        TORCH_CHECK(foreign_.empty(), op_.schema().name(), ": expected all tensors to be on the same device, found ",
                    c10::Device(kType, device_), " and ", foreign_.front());
    }

    // A GPU's host waits for the content before it knows how much to allocate.
    bool shape_depends_on_content(const torch::jit::Stack &stack, size_t first) const {
        const std::string &name = op_.schema().name();
        const bool by_index = name == "aten::index" || name == "aten::index_put" || name == "aten::index_put_" ||
                              name == "aten::_index_put_impl_";
        if (by_index) {
            return std::any_of(arguments_.begin(), arguments_.end(), [&](const Argument &argument) {
                const bool is_mask =
                    argument.host.scalar_type() == at::kBool || argument.host.scalar_type() == at::kByte;
                return is_mask && &argument != &arguments_.front();
            });
        }
        if (!op_.hasTag(at::Tag::dynamic_output_shape)) return false;
        const auto size = op_.schema().argumentIndexWithName("output_size");
        return !size || stack[first + *size].isNone();
    }

    // A kernel may have resized an output.
    static void settle(Argument &argument) {
        if (!argument.is_written || argument.host.sizes() == argument.given.sizes()) return;
        argument.given.resize_(argument.host.sizes());
        move(argument.host, argument.given);
    }

    static void move(const at::Tensor &host, const at::Tensor &target) {
        Opened opened;
        opened.add(target);
        if (target.numel() > 0) on_host(target).copy_(host);
    }

    c10::IValue given_back(const c10::IValue &value) {
        if (value.isTensor()) return returned(value.toTensor());
        if (value.isTensorList()) {
            c10::List<at::Tensor> tensors;
            for (const at::Tensor &tensor : value.toTensorVector()) tensors.push_back(returned(tensor));
            return tensors;
        }
        if (!value.isNone() && !arguments_.empty()) add(device_, kReads);
        return value;
    }

    at::Tensor returned(const at::Tensor &host) {
        if (!host.defined()) return host;
        for (const Argument &argument : arguments_) {
            if (argument.host.is_same(host)) return argument.given;
        }
        for (const Argument &argument : arguments_) {
            if (argument.host.has_storage() && argument.host.is_alias_of(host))
                return seen_through(argument.given, host);
        }
        On on(device_);
        at::Tensor result =
            ::empty_strided(host.sizes(), host.strides(), host.scalar_type(), std::nullopt, std::nullopt, std::nullopt);
        move(host, result);
        return result;
    }

    // A view of the caller's tensor that covers what `host` covers.
    static at::Tensor seen_through(const at::Tensor &given, const at::Tensor &host) {
        auto impl = c10::make_intrusive<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(given.storage()),
                                                         given.key_set(), host.dtype());
        impl->set_storage_offset(host.storage_offset());
        impl->set_sizes_and_strides(host.sizes(), host.strides());
        return at::Tensor(std::move(impl));
    }

    const c10::OperatorHandle &op_;
    c10::DeviceIndex device_ = -1;
    c10::SmallVector<Argument, 8> arguments_;
    c10::SmallVector<c10::Device, 1> foreign_;
    Opened opened_;
};

void on_the_device(const c10::OperatorHandle &op, torch::jit::Stack *stack) { Call(op).run(stack); }

// ---- what torch asks of a device

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return kType; }
    c10::Device exchangeDevice(c10::Device device) const override {
        const c10::Device before = getDevice();
        setDevice(device);
        return before;
    }
    c10::Device getDevice() const override { return {kType, current}; }
    void setDevice(c10::Device device) const override {
        TORCH_CHECK(device.index() < kDevices, "simulated device: there are ", int{kDevices}, " of them, not ", device);
        uncheckedSetDevice(device);
    }
    void uncheckedSetDevice(c10::Device device) const noexcept override {
        if (device.has_index()) current = device.index();
    }
    c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
    c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
    c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
    c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
    bool queryStream(const c10::Stream &) const override { return true; }
    void synchronizeStream(const c10::Stream &stream) const override { add(stream.device_index(), kWaits); }
    void synchronizeDevice(const c10::DeviceIndex device) const override { add(device, kWaits); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return kDevices; }
    c10::DeviceIndex getCurrentDevice() const override { return current; }
    void setCurrentDevice(c10::DeviceIndex device) const override { Guard().setDevice({kType, device}); }
};

}  // namespace

REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_device>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", TORCH_FN(::empty));
    m.impl("empty_strided", TORCH_FN(::empty_strided));
    m.impl("view", TORCH_FN(view));
    m.impl("_reshape_alias", TORCH_FN(reshape_alias));
    m.impl("as_strided", TORCH_FN(as_strided));
    m.impl("resize_", TORCH_FN(resize_));
    m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
    m.impl("_copy_from", TORCH_FN(copy_from));
    m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
    m.impl("_local_scalar_dense", TORCH_FN(local_scalar));
    m.impl("_fused_sdp_choice", TORCH_FN(sdp_choice));
}

// Views with the bit are what copy_from resolves: torch would resolve them by a copy, and that by another.
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

// ---- for Python, by ctypes

extern "C" {

void opsocket_simulated_register() { at::RegisterPrivateUse1HooksInterface(new Hooks); }

// Make allocations accessible, by their first addresses: those of storages. 0, or one more than the place of an address
// where no living allocation begins, and nothing is open then.
int opsocket_simulated_open(const void *const *starts, int count, int device) {
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    for (int i = 0; i < count; i++) {
        if (s.blocks.find(starts[i]) == s.blocks.end()) return i + 1;
    }
    for (int i = 0; i < count; i++) {
        Block *block = s.blocks[starts[i]];
        if (block->opened++ == 0) mprotect(block->pages, block->length, PROT_READ | PROT_WRITE);
    }
    s.devices[device].counts[kLaunches]++;
    return 0;
}

void opsocket_simulated_close(const void *const *starts, int count) {
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    for (int i = 0; i < count; i++) {
        auto found = s.blocks.find(starts[i]);
        if (found == s.blocks.end()) continue;
        Block *block = found->second;
        if (--block->opened == 0) mprotect(block->pages, block->length, PROT_NONE);
    }
}

// Reads, writes and waits of this thread.
void opsocket_simulated_accesses(int device, int64_t *accesses) {
    std::copy_n(mine[device].begin() + kReads, 3, accesses);
}

void opsocket_simulated_counts(int device, int64_t *counts) {
    std::lock_guard<std::mutex> lock(state().mutex);
    std::copy_n(state().devices[device].counts.begin(), static_cast<size_t>(kCounts), counts);
}

void opsocket_simulated_waited(int device) { add(static_cast<c10::DeviceIndex>(device), kWaits); }

void opsocket_simulated_limit(int device, int64_t bytes) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().devices[device].limit = bytes;
}

int opsocket_simulated_current() { return current; }
}
