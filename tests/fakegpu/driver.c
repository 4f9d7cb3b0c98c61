// The few functions of the CUDA driver that PyTorch calls, over the runtime of runtime.c.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

extern int cudaGetDeviceCount(int*);
extern int cudaDeviceGetAttribute(int*, int, int);

static __thread void* context = (void*)1;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGet(int* device, int number) { return *device = number, 0; }
int cuDeviceGetCount(int* count) { return cudaGetDeviceCount(count); }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    return cudaDeviceGetAttribute(value, attribute, device);
}
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
int cuDevicePrimaryCtxRetain(void** made, int device) { return *made = (void*)(size_t)(device + 1), 0; }
int cuCtxGetCurrent(void** current) { return *current = context, 0; }
int cuCtxSetCurrent(void* wanted) { return context = wanted, 0; }
int cuGetErrorString(int error, const char** text) { return *text = "an error of the fake GPU", 0; }
int cuGetProcAddress_v2(const char* name, void** found, int version, unsigned long long flags, int* result) {
    *found = dlsym(RTLD_DEFAULT, name);
    if (result) *result = *found ? 0 : 1;
    return 0;
}
