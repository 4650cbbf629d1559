// Package block keeps the bytes of large payloads in segment files, outside of
// log and state.
//
// Whoever gets the bytes appends them to a segment of its own member, other
// members store them at the same place of their copies of that segment, and log
// and state carry only extents (gearsfs.Extent), which say where the bytes are
// and what their checksums are. So nothing here is an index: a segment is
// nothing but bytes, and which of them are in use only the owners of extents
// know.
//
//	blocks/00000000000000a1/000001957a3c4f00   the member whose segment it is / its number
//
//	 0        4096     8192     12288    16384    20480
//	+--------+--------+--------+--------+--------+--------+--
//	| append of 9000 bytes  |..| 4096   | 100|...| append of …     up to 64 MiB
//	+--------+--------+--------+--------+--------+--------+--
//	                         ^^ never written, so a hole or zeros
//
// Each append begins at a page of 4096 bytes, and has these pages for itself. A
// replica's copy has holes where it lacks bytes or needs them no more; to free
// is to punch a hole. Once nothing is left in a segment the file goes.
//
// Invariants:
//
//  1. A page of a segment is given out by Append once, and never again: a
//     segment is written front to back, its number is higher than all before of
//     its member, and the newest of them always keeps its file, so that its
//     number is known even when the clock goes back. A new life of the node
//     begins a new segment.
//  2. When an extent is given out, the names of its segment's file and directory
//     survive a power cut. So a number whose extents others have heard of is
//     never forgotten, and Sync has to sync files only.
//  3. What was appended or stored before a Sync began survives a power cut when
//     it has returned; and what was there before Open, when that has.
//  4. After a sync has failed nothing is written any more: the kernel may have
//     dropped what it could not write, and tells only once.
//  5. No byte leaves the store that does not have its checksum. A page that does
//     not is absent, where nothing was written in its place, or damaged.
//  6. A segment's file goes only while nobody writes to it, see segment.life; so
//     what was stored is never in a file without a name.
//  7. Sweep frees a page only if nothing refers to it and nothing was written to
//     its segment for some time before it was asked what is referred to: an
//     upload is referred to only a while after it was written.
//
// # Where the file system can't
//
// Open tries whether the file system knows holes (SEEK_DATA) and makes them
// (FALLOC_FL_PUNCH_HOLE). ext4, xfs, btrfs and tmpfs do, overlay does where what
// is below does. Elsewhere the store works too: Has reads and compares
// checksums, a page of zeros that does not have its checksum counts as absent,
// and what was freed is remembered in memory, so that a segment goes when all of
// it was freed. What the memory of an earlier process had, Sweep finds out: it
// removes segments that nothing refers to. Without punching, space comes back in
// whole segments only.
//
// # What was measured
//
// Files are not allocated ahead. An append of 4 KiB with fdatasync after it was
// as fast into a file that grows as into one that fallocate had prepared (4,400
// to 5,000 a second against 4,600 to 5,200 with KEEP_SIZE, 4,800 to 5,200 with
// the length set): either way the journal has to take the change of the file's
// blocks. Only a file full of zeros was faster (7,500 to 8,700), and that would
// be writing all twice, and SEEK_DATA would no longer tell what is there.
package block
