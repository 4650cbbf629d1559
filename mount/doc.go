// Package mount shows a volume as a POSIX file system: FUSE over any
// dgm.Manager. A node id is an inode number, so the tree is the volume's and
// nothing of it is kept here; a directory's hidden `.gears` adds its queues
// as files.
//
// The kernel caches what this package answers, so most of the work is to say
// how long an answer holds:
//
//  1. Names and attributes hold long while Manager.Watch tells what others
//     change, and a second while it doesn't. That a name is missing never
//     holds: nobody would ask when others have made the file and closed it.
//     An OPEN through a name that others have changed is answered with ESTALE,
//     and the kernel looks again (dentries.go, retry.go).
//  2. A file's pages are those of one version of its data stream. OPEN always
//     asks the Manager and keeps the pages only where the version is the one
//     that they are known to show; an answer that shows another version of an
//     open file drops the pages first (inodes.go).
//  3. A handle counts offsets from where the data stream began when it was
//     opened. A stream that records were taken from is not cached, until it is
//     mapped.
//
// Rules for handlers, each broken at the price of a hung machine:
//
//  4. Only a request that waits (a take, a peek, a put or an append into a
//     full stream, a lock) looks at its cancel channel; for the others calls.watch
//     does, once their node does not answer. What was proposed is finished and
//     its true outcome reported, or EIO where it can't be known.
//  5. LOOKUP, CREATE and OPEN never wait for a record or for room; FLUSH waits
//     only for a commit.
//  6. Names are invalidated from the watch's goroutine alone, never from a
//     handler: the kernel may hold the directory's lock while it waits for
//     the handler. Pages may be invalidated from LOOKUP, GETATTR, READDIRPLUS
//     and SETLK, which hold no page, and never from READ, WRITE or SETATTR.
//     And never from this process where another is to take over (believe.notify).
//     No notice may wait for another one to be sent (Tell).
//  7. The process never calls into its own mount, but for the one probe in
//     Mount that shows that it serves.
//  8. A handler that changes something, in the volume or in what the mount
//     keeps, comes in through entrance.beginOnce and says so by effects: so that
//     the next process can go on when this one dies (keep.go).
//  9. WRITE and SETATTR may be answered before the volume has them (held.go). So
//     a handler that asks the volume about a file, or changes it, settles the
//     file first; those whose request names only the file need not,
//     entrance.begin does. A full volume or quota, and what others do to the
//     file meanwhile, are then told by FLUSH and FSYNC.
package mount
