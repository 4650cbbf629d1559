package file

import "github.com/gearsfs/gearsfs"

// dentries is the cache of names, and how many of each directory it holds. Where
// these are as many as the directory has, it has no other: a name that is about to
// be made is asked for first, and so need not be looked for in the tables, for
// which all that has changed would have to move there.
type dentries struct {
	cache[dentryKey, dentry]
	found map[gearsfs.Ino]uint64 // names that lead somewhere, by directory; none is 0
}

func (c *dentries) init(max int) {
	c.cache.init(max)
	c.found = make(map[gearsfs.Ino]uint64)
}

func (c *dentries) put(key dentryKey, d dentry) {
	if was, ok := c.slots[key]; ok {
		c.uncount(key, was.value)
	}
	if d.ino != 0 {
		c.found[key.dir]++
	}
	c.cache.put(key, d)
}

func (c *dentries) shrink() { c.cache.shrink(c.uncount) }

func (c *dentries) uncount(key dentryKey, d dentry) {
	if d.ino == 0 {
		return
	}
	if c.found[key.dir]--; c.found[key.dir] == 0 {
		delete(c.found, key.dir)
	}
}

// all reports whether all names of a directory are here that has so many.
func (c *dentries) all(dir gearsfs.Ino, entries uint64) bool { return c.found[dir] == entries }
