package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// checkedQuota is a quota's row beside what is found to count under it.
type checkedQuota struct {
	dir     gearsfs.Ino
	outer   uint64
	removed bool
	row     [2]uint64 // bytes and inodes
	found   [2]uint64
}

func (c *check) readQuotas() error {
	return scanQuotas(c.view, func(dir gearsfs.Ino, row *wire.QuotaRow) error {
		q := &checkedQuota{dir: dir, outer: row.Outer, removed: row.Removed, row: [2]uint64{row.Bytes, row.Inodes}}
		c.quotas = append(c.quotas, q)
		c.quotaOf[uint64(dir)] = q
		return nil
	})
}

// compareQuotas checks that each quota's use is that of what counts under it,
// and, where none is being counted, that directories count under the right one.
func (c *check) compareQuotas() {
	for _, ino := range c.order {
		n := c.inodes[ino]
		steps := 0
		for under := n.row.Quota; under != 0; steps++ {
			q := c.quotaOf[under]
			if q == nil || steps > len(c.quotas) {
				c.bad("inode %d counts under the quota of inode %d, which has none, or is around itself", ino, under)
				break
			}
			q.found[0] += n.bytes
			q.found[1]++
			under = q.outer
		}
		if c.volume.Counting == 0 && n.links > 0 && isDir(n.row.Mode) {
			c.checkUnder(ino, n)
		}
	}
	for _, q := range c.quotas {
		n := c.inodes[q.dir]
		switch {
		case q.row != q.found:
			c.bad("the quota of inode %d counts %d bytes and inodes, found %d", q.dir, q.row, q.found)
		case q.removed:
			if q.found[1] == 0 && c.volume.Counting != uint64(q.dir) {
				c.bad("the quota of inode %d was removed and is still there", q.dir)
			}
		case n == nil || !isDir(n.row.Mode) || n.row.Quota != uint64(q.dir):
			c.bad("inode %d has a quota and does not count under it", q.dir)
		}
	}
}

// checkUnder checks that a directory counts under its own quota, which is within
// that of its parent, or under that.
func (c *check) checkUnder(ino gearsfs.Ino, n *checkedInode) {
	under := n.row.Quota
	if q := c.quotaOf[uint64(ino)]; q != nil && under == uint64(ino) {
		under = q.outer
	}
	if up := c.inodes[n.parent]; under != up.row.Quota {
		c.bad("directory %d counts under the quota of inode %d, the one that it is in under that of %d", ino, under, up.row.Quota)
	}
}
