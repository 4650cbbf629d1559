package file

import "github.com/gearsfs/gearsfs"

// readLocks checks that locks are on files, in order, and do not mind each other.
func (c *check) readLocks() error {
	return scanLocks(c.view, func(ino gearsfs.Ino, list []fileLock) {
		if n := c.inodes[ino]; n == nil || !isFile(n.row.Mode) || len(list) == 0 {
			c.bad("%d locks on inode %d, which is no regular file, or none", len(list), ino)
		}
		for i := range list {
			a := &list[i]
			if a.kind != lockRead && a.kind != lockWrite || a.start > a.end || a.end > gearsfs.LockEnd {
				c.bad("inode %d has a lock of kind %d from %d to %d", ino, a.kind, a.start, a.end)
			}
			if i > 0 && list[i-1].compare(*a) >= 0 {
				c.bad("inode %d: the lock from %d on is not in its place", ino, a.start)
			}
			for j := i + 1; j < len(list) && list[j].start <= a.end; j++ {
				if b := &list[j]; a.minds(b) || a.by == b.by {
					c.bad("inode %d: two locks from %d and %d on can't be had at once", ino, a.start, b.start)
				}
			}
		}
	})
}
