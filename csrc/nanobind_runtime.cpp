// nanobind's own runtime, compiled as one file of this extension. Listing its path as a source instead
// would leave build folders named after that path.
#include <nb_combined.cpp>
