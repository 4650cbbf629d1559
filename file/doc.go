// Package file is a volume's deterministic state machine: directories, files
// as red-black trees from key to stream, attributes, links, extended
// attributes, files that are open without a name, and sessions with their last
// answers.
//
// # How an entry is applied
//
//	Apply -> runTimers      what is due by the entry's time, see timers
//	      -> beginCommand   a retry? its stored answer is given again
//	      -> dispatch       one of apply...: all checks, then all changes
//	      -> endCommand     the answer is stored with its session
//	      -> flush          what became dirty goes into the open batch, once
//	      -> Commit         with the applied index and log time
//	      -> Observer       what was touched and changed
//
// Names, inodes and streams in use are cached (cache, node, openStream). A
// change is made in memory and marked dirty; rows that have no object in
// memory (names, records, attributes, orphans) go into the open batch at once,
// where later commands of the same entry read them. Rows become dirty, and are
// written, in the order of the commands, so what the caches held makes no
// difference to what is written.
//
// # Bytes in the block store
//
// A record may be a list of extents, see splice and shared. Applying never reads
// what they stand for: it cuts them, counts who refers to which pages, and tells
// the Observer which ones nobody does any more. Whoever reads gets extents, too.
//
// An error of a command is a *gearsfs.Error and its answer. Any other error is
// the store's: refuse notes it, and the Machine is broken from then on.
//
// # Readers
//
// A reader takes what it needs from the caches under the read lock, or begins
// a reading: a View of the tables as of now, read without any lock. Both show
// the state between two entries.
package file
