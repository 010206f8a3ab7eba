// Package guardian puts global things back, whatever becomes of ctlab.
//
// It is a small child process that holds the reading end of a pipe. ctlab tells it
// what will be changed before it changes it; when the pipe ends, because ctlab
// closed it or because ctlab is gone, by SIGKILL too, the guardian restores
// each value that is still the one ctlab wrote, removes the temporary directory and
// exits. There is one path of restoring, and the ordinary exit takes it too.
//
// The guardian also keeps the lock that lets only one lab at a time change the
// machine: an abstract socket, so that no file is left either.
package guardian
