// Package gearsfs holds the nouns that every room of GearsFS shares: ids, keys,
// records, attributes and errors. It has no behaviour beyond checking and
// naming them, and imports only the standard library.
//
// A volume is a named tree of directories and files. A file is inode
// attributes and a red-black tree from Key to stream. A stream is a FIFO of
// records; each record has a Seq, its identity, and a Pos, the number of bytes
// put into the stream before it.
package gearsfs
