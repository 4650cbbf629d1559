// Package persist keeps what must survive: a node's log in segment files of its
// own, and the state of its volume in Pebble.
//
// # The data directory
//
//	LOCK               held by the process that has the directory open
//	FORMAT             "gearsfs data\nversion 2\n" and a checksum; written last
//	identity           the node's name and id, the volume's id, which member the node is
//	base               the snapshot that state and log begin with, where one was installed; see install.go
//	log/00000001.seg…  the log, see segment.go
//	log/spare-…        segments to be used again
//	state/             Pebble, without a log of its own; state-1/ … after a snapshot was installed
//	snapshots/…        copies of the state that other nodes fetch; gone at the next Open
//	incoming/…         another node's snapshot, as far as it was fetched
//	blocks/…           the block store's, see package block
//	gearsfs.creating   there while the directory is made
//
// # The state's tables
//
// The state is one ordered map of bytes. A key begins with a byte that names
// its table; numbers are big-endian, so that the order of the bytes is that of
// the numbers. A stream's key (1 to 250 bytes, no NUL) in the middle is ended
// by a NUL, so that no stream's rows lie between those of another. Values are
// messages of wire/row.proto.
//
//	table     key                                                    value       what it is for
//	volume    'v'                                                    VolumeRow   counters, applied index, format
//	inode     'i' ino(8)                                             InodeRow    attributes
//	dirent    'd' dir(8) name                                        DirentRow   a name in a directory
//	xattr     'x' ino(8) name                                        the value   an extended attribute
//	stream    's' ino(8) key                                         StreamRow   head, cursor, tail and counts
//	record    'r' ino(8) key 00 pos(8) seq(8)                        RecordRow   a record's payload
//	out       'o' ino(8) key 00 pos(8) seq(8)                        OutRow      leased, returned or delayed records
//	timer     't' due(8) ino(8) key 00 pos(8) seq(8)                 empty       deadlines and delays, by log time; both ff…: a stream's age; seq ff…fe: its ids
//	session   'c' minted(8) salt(8)                                  SessionRow  last answers
//	orphan    'u' ino(8)                                             OrphanRow   open files without a name
//	remote    'n' name                                               RemoteRow   named nodes
//	id        'k' ino(8) key 00 id                                   IdRow       ids of records that were put
//	id order  'j' ino(8) key 00 number(8)                            the id      for forgetting them in order
//	quota     'q' dir(8)                                             QuotaRow    limits and use of a directory and all below it
//	count     'w' dir(8)                                             CountRow    directories that the count of a quota has to visit
//	lock      'l' ino(8)                                             LockRow     locks of sessions on a file
//	member    'm' id(8)                                              MemberRow   nodes of the group, and those that were
//	shared    'b' origin(8) segment(8) at(8)                         SharedRow   pages of the block store that several rows refer to
//
// A session's minting time is signed; its sign bit is turned over, so that
// earlier times come first.
//
// Rows that entries have changed wait in an overlay in memory, of half a MiB, and
// move into Pebble as one batch of whole entries, see overlay.go. Pebble, which has
// no log, flushes behind some batch, so its files are always the rows as they were
// after some entry; which one says the volume's row. What was not flushed yet
// the log brings back, wherever it was.
//
// Invariants of the tables' keys:
//
//  1. For each constructor f and its parser p: p(f(x)) == x, and f(p(k)) == k
//     for each k that p accepts.
//  2. bytes.Compare(f(x), f(y)) is the order of x and y by fields from left to
//     right, where strings compare by bytes.
//  3. The keys of a stream's records, and of a file's rows in one table, are
//     neighbours: RecordRange, StreamRange and FileRange hold them and no others.
package persist

// FormatVersion is the version of all that this package writes. It changes
// when an older program could not read, or would misread, what is written;
// testdata keeps a directory of each version. Data of version 1, in which no
// record has extents, become those of this version when they are opened.
const FormatVersion = 2

// formatOldest is the first version that Open takes.
const formatOldest = 1
