package file

import "sync/atomic"

// Bounds of the Machine's caches, in objects. What is dirty in the open batch
// may exceed them until the entry ends.
const (
	nodesMax    = 64 << 10
	dentriesMax = 64 << 10
	streamsMax  = 4 << 10
)

// cache is a bounded map that forgets what was not used since its clock hand
// last passed. get may run beside other gets; everything else needs the
// Machine's write lock.
type cache[K comparable, V any] struct {
	max   int
	slots map[K]*slot[K, V]
	ring  []*slot[K, V]
	hand  int
}

type slot[K comparable, V any] struct {
	key   K
	value V
	place int // in ring
	used  atomic.Bool
}

func (c *cache[K, V]) init(max int) {
	*c = cache[K, V]{max: max, slots: make(map[K]*slot[K, V])}
}

func (c *cache[K, V]) get(key K) (value V, ok bool) {
	s, ok := c.slots[key]
	if !ok {
		return value, false
	}
	if !s.used.Load() {
		s.used.Store(true)
	}
	return s.value, true
}

func (c *cache[K, V]) put(key K, value V) {
	if s, ok := c.slots[key]; ok {
		s.value = value
		return
	}
	s := &slot[K, V]{key: key, value: value, place: len(c.ring)}
	c.slots[key] = s
	c.ring = append(c.ring, s)
}

func (c *cache[K, V]) drop(key K) {
	s, ok := c.slots[key]
	if !ok {
		return
	}
	delete(c.slots, key)
	last := c.ring[len(c.ring)-1]
	c.ring[s.place], last.place = last, s.place
	c.ring[len(c.ring)-1] = nil
	c.ring = c.ring[:len(c.ring)-1]
}

// shrink drops unused values until the bound holds; gone, which may be nil, is
// called with each.
func (c *cache[K, V]) shrink(gone func(K, V)) {
	for len(c.ring) > c.max {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		s := c.ring[c.hand]
		if s.used.Swap(false) {
			c.hand++
			continue
		}
		c.drop(s.key)
		if gone != nil {
			gone(s.key, s.value)
		}
	}
}
