package persist

import "github.com/cockroachdb/pebble/v2/vfs"

// FS is the file system that everything is written through. It is injectable,
// so that tests can fail any operation of it and crash between any two.
type FS = vfs.FS

// Options say how a data directory is opened; a zero size is the default.
type Options struct {
	FS     FS     // nil is the operating system's
	Create bool   // make the directory's contents where there are none
	Name   string // the node's name, for a new directory

	// Fatal is called, at most once, with an error after which the state in
	// memory can't be trusted: the process must end, or at least this node
	// must. It is called on a goroutine of the store's with its locks held, so
	// it must not call back into this package.
	Fatal func(error)

	CacheBytes    int64  // of the state's block cache; 64 MiB
	MemTableBytes uint64 // of each of the state's memtables, at most four; 32 MiB
	SegmentBytes  int64  // of a log segment; 16 MiB, at most 1 GiB
	LogCacheBytes int    // of recent log entries kept in memory; 8 MiB

	before *beforeFlush // the Data's
}

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 32 << 20
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 16 << 20
	}
	o.SegmentBytes = min(o.SegmentBytes, segmentBytesMax)
	if o.LogCacheBytes == 0 {
		o.LogCacheBytes = 8 << 20
	}
	return o
}
