// Package ns makes anonymous network namespaces.
//
// A namespace here has no name under /run/netns: it lives only as long as the
// thread that entered it, the descriptor that holds it and the processes
// started in it. When this process dies, by SIGKILL too, its threads and
// descriptors go, its children get SIGKILL from the kernel, and with the last of
// them the namespace goes as well. There is nothing to clean up.
//
// What a caller can get wrong: work done outside Do happens in the caller's
// namespace, not in this one, however close the code stands together.
package ns
