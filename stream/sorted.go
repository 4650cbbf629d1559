package stream

import (
	"iter"
	"slices"
	"sort"

	"github.com/gearsfs/gearsfs"
)

// blockEntries bounds a block of a sorted map: what an insertion may move.
const blockEntries = 128

// sorted maps places to values and walks over them in order. It is a list of
// sorted blocks: adding behind the last and removing near the first, which is
// what queues do, cost no more than a search. The zero value is empty.
type sorted[V any] struct {
	blocks [][]entry[V] // none empty
	n      int
}

type entry[V any] struct {
	at gearsfs.Place
	v  V
}

// find returns the block and index of the first entry at or behind at; it may
// be one behind the last block's last.
func (s *sorted[V]) find(at gearsfs.Place) (block, i int) {
	last := len(s.blocks) - 1
	if last < 0 {
		return 0, 0
	}
	block = sort.Search(last, func(b int) bool {
		e := s.blocks[b]
		return !e[len(e)-1].at.Less(at)
	})
	entries := s.blocks[block]
	return block, sort.Search(len(entries), func(i int) bool { return !entries[i].at.Less(at) })
}

func (s *sorted[V]) get(at gearsfs.Place) (v V, ok bool) {
	if p := s.ref(at); p != nil {
		return *p, true
	}
	return v, false
}

// ref returns the value at a place, to be changed; nil where there is none.
func (s *sorted[V]) ref(at gearsfs.Place) *V {
	b, i := s.find(at)
	if b < len(s.blocks) && i < len(s.blocks[b]) && s.blocks[b][i].at == at {
		return &s.blocks[b][i].v
	}
	return nil
}

func (s *sorted[V]) set(at gearsfs.Place, v V) {
	b, i := s.find(at)
	if b == len(s.blocks) {
		s.blocks = append(s.blocks, nil)
	}
	entries := s.blocks[b]
	if i < len(entries) && entries[i].at == at {
		entries[i].v = v
		return
	}
	s.n++
	if len(entries) < blockEntries {
		s.blocks[b] = slices.Insert(entries, i, entry[V]{at, v})
		return
	}
	if i == len(entries) { // behind everything: begin a block, leave the full one full
		s.blocks = append(s.blocks, append(make([]entry[V], 0, 8), entry[V]{at, v}))
		return
	}
	upper := slices.Clone(entries[blockEntries/2:])
	clear(entries[blockEntries/2:])
	lower := entries[:blockEntries/2]
	if i <= len(lower) {
		lower = slices.Insert(lower, i, entry[V]{at, v})
	} else {
		upper = slices.Insert(upper, i-len(lower), entry[V]{at, v})
	}
	s.blocks[b] = lower
	s.blocks = slices.Insert(s.blocks, b+1, upper)
}

func (s *sorted[V]) delete(at gearsfs.Place) {
	b, i := s.find(at)
	if b == len(s.blocks) || i == len(s.blocks[b]) || s.blocks[b][i].at != at {
		return
	}
	s.n--
	if len(s.blocks[b]) == 1 {
		s.blocks = slices.Delete(s.blocks, b, b+1)
		return
	}
	s.blocks[b] = slices.Delete(s.blocks[b], i, i+1)
}

func (s *sorted[V]) len() int { return s.n }

// min returns the first place; ok is false where there is none.
func (s *sorted[V]) min() (at gearsfs.Place, ok bool) {
	if s.n == 0 {
		return at, false
	}
	return s.blocks[0][0].at, true
}

// before returns the last place in front of at.
func (s *sorted[V]) before(at gearsfs.Place) (p gearsfs.Place, ok bool) {
	b, i := s.find(at)
	switch {
	case i > 0:
		return s.blocks[b][i-1].at, true
	case b > 0:
		return s.blocks[b-1][len(s.blocks[b-1])-1].at, true
	}
	return p, false
}

// from walks over the entries at or behind a place, in order. The map must not
// be changed meanwhile.
func (s *sorted[V]) from(at gearsfs.Place) iter.Seq2[gearsfs.Place, *V] {
	return func(yield func(gearsfs.Place, *V) bool) {
		b, i := s.find(at)
		for ; b < len(s.blocks); b, i = b+1, 0 {
			for ; i < len(s.blocks[b]); i++ {
				if e := &s.blocks[b][i]; !yield(e.at, &e.v) {
					return
				}
			}
		}
	}
}
