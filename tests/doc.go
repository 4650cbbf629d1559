// Package tests runs GearsFS from outside: the two programs as processes, over
// sockets and mounts, killed and cut off, against the tools that people use.
//
// It needs root or fusermount3, /dev/fuse and the tools named in main_test.go;
// what is missing is a failure, not a skip. GEARSFS_TORTURE=1 (make torture)
// runs everything at full size and for longer.
package tests
