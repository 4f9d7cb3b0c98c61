// A CUDA runtime without a GPU. PyTorch's allocator, streams, events and graph capture run on it for real; kernels do
// nothing and take no time, and copies move at most COPIED bytes. What reaches it is written to a log (README.md).
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST_DEVICES 16
#define COPIED (1ul << 20)     // of a copy or fill: nobody looks at the pixels of large sets
#define CONTEXT (600ul << 20)  // what a process takes of a real card before it allocates anything

static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }

static __thread int device;
static __thread cudaError_t last_error;
static cudaError_t fail(cudaError_t error) { return last_error = error; }

static int devices(void) {
    const char* count = getenv("FAKE_GPU_COUNT");
    return count ? atoi(count) : 1;
}

static size_t card_bytes(void) {
    const char* gib = getenv("FAKE_GPU_GIB");
    return (size_t)((gib ? atof(gib) : 80) * (1ul << 30));
}

// --- the log: lines of KIND, what, device and stream, and the thread (0 is the main one), with tabs between them
// ------

static char** lines;
static long line_count, line_room;

static void note(const char* format, ...) {
    char* text;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0) abort();
    va_end(arguments);
    lock();
    if (line_count == line_room) lines = realloc(lines, sizeof(char*) * (line_room = 2 * line_room + 1024));
    lines[line_count++] = text;
    unlock();
}

static long thread_number(void) { return syscall(SYS_gettid) - getpid(); }

long fake_line_count(void) { return line_count; }
const char* fake_line(long number) { return lines[number]; }
void fake_clear(void) {
    lock();
    while (line_count) free(lines[--line_count]);
    unlock();
}

// --- streams, captures, events, graphs -------------------------------------------------------------------------------

typedef struct capture {
    int active, broken;
    enum cudaStreamCaptureMode mode;
    pthread_t owner;
    long id, nodes;
    struct capture* next;
} capture;
typedef struct CUstream_st {
    int number, device, priority;
    capture* capture;
} stream;
typedef struct CUevent_st {
    int is_recorded;
    capture* capture;
} event;
typedef struct CUgraph_st {
    capture* capture;
} graph;
typedef struct CUgraphExec_st {
    long nodes;
} executable;

static capture* captures;
static int stream_count = 1;
static long capture_count;
static stream default_streams[MOST_DEVICES];
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static stream* of(cudaStream_t handle) {
    stream* s = handle;
    if (handle == NULL || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
        s = &default_streams[device];
        s->device = device;
    }
    if (s->capture && !s->capture->active) s->capture = NULL;  // it has ended, and has let its streams go
    return s;
}

// Fails, and breaks the captures under way that forbid it to this thread.
static cudaError_t forbidden(const char* what) {
    cudaError_t result = cudaSuccess;
    lock();
    for (capture* c = captures; c; c = c->next) {
        int covers = c->mode == cudaStreamCaptureModeGlobal || pthread_equal(c->owner, pthread_self());
        if (!c->active || !covers || c->mode == cudaStreamCaptureModeRelaxed) continue;
        if (thread_mode == cudaStreamCaptureModeRelaxed) continue;
        c->broken = 1;
        note("ILLEGAL\t%s during a capture\t\t%ld", what, thread_number());
        result = cudaErrorStreamCaptureUnsupported;
    }
    unlock();
    return result ? fail(result) : result;
}

// The host waits for the device.
static cudaError_t wait_for(const char* what) {
    note("WAIT\t%s\t\t%ld", what, thread_number());
    return forbidden(what);
}

// Work on a stream: a node of its capture, if it has one.
static void work(const char* kind, const char* what, stream* s) {
    if (s->capture) s->capture->nodes++;
    for (capture* c = captures; c; c = c->next)
        if (c->active && s->capture != c) note("ILLEGAL\t%s missed by a capture\t\t%ld", what, thread_number());
    note("%s\t%s\tdevice %d stream %d\t%ld", kind, what, s->device, s->number, thread_number());
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* made, unsigned flags, int priority) {
    *made = calloc(1, sizeof(stream));
    (*made)->number = stream_count++;
    (*made)->device = device;
    (*made)->priority = priority;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* made) { return cudaStreamCreateWithPriority(made, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned f) {
    return cudaStreamCreateWithPriority(made, f, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int* priority) {
    *priority = of(s)->priority;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return of(s)->capture ? forbidden("cudaStreamQuery") : cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_for("cudaStreamSynchronize"); }
cudaError_t cudaDeviceSynchronize(void) { return wait_for("cudaDeviceSynchronize"); }
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    capture* made = calloc(1, sizeof(capture));
    made->active = 1;
    made->mode = mode;
    made->owner = pthread_self();
    made->id = ++capture_count;
    lock();
    made->next = captures;
    captures = made;
    unlock();
    of(s)->capture = made;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* made) {
    capture* ended = of(s)->capture;
    *made = NULL;
    if (!ended) return fail(cudaErrorIllegalState);
    ended->active = 0;
    of(s)->capture = NULL;
    if (ended->broken) return fail(cudaErrorStreamCaptureInvalidated);
    *made = calloc(1, sizeof(graph));
    (*made)->capture = ended;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus* status) {
    stream* s = of(handle);
    *status = s->capture == NULL   ? cudaStreamCaptureStatusNone
              : s->capture->broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* g, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
    cudaStreamIsCapturing(s, status);
    if (id) *id = of(s)->capture ? of(s)->capture->id : 0;
    if (g) *g = NULL;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* count) {
    if (!nodes) *count = g->capture->nodes;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t g, unsigned long long flags) {
    *made = calloc(1, sizeof(executable));
    (*made)->nodes = g->capture->nodes;
    note("RECORDED\t%ld\t\t%ld", (*made)->nodes, thread_number());
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t g, unsigned long long flags) {
    return cudaGraphInstantiate(made, g, flags);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    char nodes[32];
    snprintf(nodes, sizeof nodes, "%ld", e->nodes);
    work("GRAPH", nodes, of(s));
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned flags) {
    *made = calloc(1, sizeof(event));
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* made) { return cudaEventCreateWithFlags(made, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    e->is_recorded = 1;
    e->capture = of(s)->capture;
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return cudaEventRecord(e, s); }
cudaError_t cudaEventQuery(cudaEvent_t e) { return forbidden("cudaEventQuery"); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return wait_for("cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t a, cudaEvent_t b) {
    *milliseconds = 1;
    return cudaSuccess;
}
// A capture spreads to the streams that wait for its events, and may not wait for others.
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    if (e->capture && e->capture->active) {
        of(s)->capture = e->capture;
    } else if (of(s)->capture && e->is_recorded) {
        of(s)->capture->broken = 1;
        note("ILLEGAL\twait for an event from outside a capture\t\t%ld", thread_number());
        return fail(cudaErrorStreamCaptureIsolation);
    }
    return cudaSuccess;
}

// --- memory: mapped when it is touched, so that a card may be larger than the machine
// ----------------------------------

typedef struct range {
    char* start;
    size_t size;
    int device;  // -1: pinned memory of the host
    struct range* next;
} range;

static range* ranges;
static size_t used[MOST_DEVICES];

static const range* find(const void* address) {
    lock();
    const range* found = ranges;
    while (found && !((char*)address >= found->start && (char*)address < found->start + found->size))
        found = found->next;
    unlock();
    return found;
}

static cudaError_t map(void** made, size_t size, int where) {
    *made = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*made == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
    range* entry = malloc(sizeof(range));
    lock();
    *entry = (range){*made, size, where, ranges};
    ranges = entry;
    if (where >= 0) used[where] += size;
    unlock();
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** made, size_t size) {
    cudaError_t error = forbidden("cudaMalloc");
    if (error) return error;
    if (used[device] + size + CONTEXT > card_bytes()) return fail(cudaErrorMemoryAllocation);
    return map(made, size, device);
}
cudaError_t cudaHostAlloc(void** made, size_t size, unsigned flags) {
    cudaError_t error = forbidden("cudaHostAlloc");
    return error ? error : map(made, size, -1);
}
cudaError_t cudaMallocHost(void** made, size_t size) { return cudaHostAlloc(made, size, 0); }
cudaError_t cudaFree(void* address) {
    cudaError_t error = address ? forbidden("cudaFree") : cudaSuccess;
    if (error) return error;
    lock();
    for (range** entry = &ranges; *entry; entry = &(*entry)->next) {
        if ((*entry)->start != address) continue;
        range* gone = *entry;
        *entry = gone->next;
        munmap(gone->start, gone->size + 1);
        if (gone->device >= 0) used[gone->device] -= gone->size;
        free(gone);
        break;
    }
    unlock();
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) { return cudaFree(address); }
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
    cudaError_t error = forbidden("cudaMemGetInfo");
    *total = card_bytes();
    *left = *total - used[device] - CONTEXT;
    return error;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* address) {
    const range* found = find(address);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = !found              ? cudaMemoryTypeUnregistered
                       : found->device < 0 ? cudaMemoryTypeHost
                                           : cudaMemoryTypeDevice;
    attributes->device = found && found->device >= 0 ? found->device : 0;
    attributes->devicePointer = (void*)address;
    return cudaSuccess;
}

static const char* kind_of(const void* address) {
    const range* found = find(address);
    return !found ? "pageable" : found->device < 0 ? "pinned" : "device";
}
static void move(void* to, const void* from, size_t size) { memmove(to, from, size < COPIED ? size : COPIED); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
    char what[96];
    snprintf(what, sizeof what, "%zu bytes, %s to %s", size, kind_of(from), kind_of(to));
    work("COPY", what, of(s));
    move(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void* to, int a, const void* from, int b, size_t size, cudaStream_t s) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, s);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
    cudaError_t error = wait_for("cudaMemcpy");
    if (!error) move(to, from, size);
    return error;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t s) {
    work("FILL", "", of(s));
    memset(to, value, size < COPIED ? size : COPIED);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }
static char symbol[1 << 16];
cudaError_t cudaGetSymbolAddress(void** address, const void* s) {
    *address = symbol;
    return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void* to, const void* from, size_t n, size_t offset, enum cudaMemcpyKind kind) {
    return cudaSuccess;
}

// --- kernels ---------------------------------------------------------------------------------------------------------

typedef struct {
    const void* function;
    const char* name;
} kernel;
static kernel* kernels;
static size_t kernel_count, kernel_room;

static size_t slot(const void* function) {
    size_t place = ((size_t)function >> 4) * 0x9E3779B97F4A7C15ul & (kernel_room - 1);
    while (kernels[place].function && kernels[place].function != function) place = (place + 1) & (kernel_room - 1);
    return place;
}
void __cudaRegisterFunction(void** handle, const char* function, char* f, const char* name, int limit, void* a, void* b,
                            void* c, void* d, int* e) {
    lock();
    if (2 * kernel_count >= kernel_room) {
        kernel* before = kernels;
        size_t room = kernel_room;
        kernel_room = room ? 2 * room : 1 << 16;
        kernels = calloc(kernel_room, sizeof(kernel));
        for (size_t i = 0; i < room; i++)
            if (before[i].function) kernels[slot(before[i].function)] = before[i];
        free(before);
    }
    kernel* entry = &kernels[slot(function)];
    if (!entry->function) kernel_count++;
    *entry = (kernel){function, name};
    unlock();
}
void** __cudaRegisterFatBinary(void* binary) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void** handle) {}
void __cudaUnregisterFatBinary(void** handle) {}
void __cudaRegisterVar(void** h, char* a, char* b, const char* name, int e, size_t size, int c, int g) {}
void __cudaRegisterManagedVar(void** h, void** a, char* b, const char* name, int e, size_t size, int c, int g) {}
char __cudaInitModule(void** handle) { return 1; }

static __thread struct {
    dim3 grid, block;
    size_t shared;
    void* stream;
} pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* s) {
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = s;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* s) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *(void**)s = pushed.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* found, const void* function) {
    *found = (cudaKernel_t)function;
    return cudaSuccess;
}

// Also what Python calls in the place of a library or of Triton's launcher.
int fake_launch(const char* name, unsigned x, unsigned y, unsigned z, void* s) {
    if (!x || !y || !z || x > 2147483647u || y > 65535 || z > 65535) {
        note("ILLEGAL\tgrid %u, %u, %u of %s\t\t%ld", x, y, z, name, thread_number());
        return fail(cudaErrorInvalidConfiguration);
    }
    work("KERNEL", name, of(s));
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** a, size_t shared, cudaStream_t s) {
    const char* name = kernel_room ? kernels[slot(function)].name : NULL;
    return fake_launch(name ? name : "unknown", grid.x, grid.y, grid.z, s);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void** a, size_t shared, cudaStream_t s) {
    return cudaLaunchKernel((void*)f, grid, block, a, shared, s);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** a) {
    return cudaLaunchKernel(function, c->gridDim, c->blockDim, a, c->dynamicSmemBytes, c->stream);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, enum cudaFuncAttribute attribute, int value) {
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* f, int threads, size_t shared) {
    *blocks = 2;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* f, int threads,
                                                                   size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

// --- the cards, much like an H100 ------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
    *count = devices();
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* current) {
    *current = device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
    if (number < 0 || number >= devices()) return fail(cudaErrorInvalidDevice);
    device = number;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int number) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "fake GPU");
    p->uuid.bytes[0] = 1 + number;
    p->totalGlobalMem = card_bytes();
    p->major = 9;
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->l2CacheSize = 50 << 20;
    p->unifiedAddressing = p->concurrentKernels = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int number) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, number);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = p.major;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = p.multiProcessorCount;
            break;
        case cudaDevAttrWarpSize:
            *value = p.warpSize;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *value = p.maxThreadsPerBlock;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = p.maxThreadsPerMultiProcessor;
            break;
        case cudaDevAttrMaxGridDimX:
            *value = p.maxGridSize[0];
            break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ:
            *value = p.maxGridSize[1];
            break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor:
            *value = p.regsPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = p.sharedMemPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = p.sharedMemPerBlockOptin;
            break;
        case cudaDevAttrL2CacheSize:
            *value = p.l2CacheSize;
            break;
        default:
            *value = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int room, int number) {
    snprintf(id, room, "0000:%02x:00.0", number);
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int a, int b) {
    *can = 0;
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char* cudaGetErrorName(cudaError_t error) { return "an error of the fake GPU"; }
const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        default:
            return cudaGetErrorName(error);
    }
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult* result) {
    *found = dlsym(RTLD_DEFAULT, name);
    if (result) *result = *found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
