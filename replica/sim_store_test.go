package replica

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"

	"github.com/gearsfs/gearsfs/file"
)

// simTree is an ordered map that never changes: a treap whose priorities come
// out of the keys, so that the same content has the same shape. A change makes
// a new root that shares the rest, so a view, a flush and a snapshot are one
// pointer.
type simTree struct {
	key, value  []byte
	priority    uint32
	left, right *simTree
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newLeaf(key, value []byte) *simTree {
	return &simTree{key: slices.Clone(key), value: slices.Clone(value), priority: crc32.Checksum(key, castagnoli)}
}

func (t *simTree) get(key []byte) ([]byte, bool) {
	for t != nil {
		switch c := bytes.Compare(key, t.key); {
		case c == 0:
			return t.value, true
		case c < 0:
			t = t.left
		default:
			t = t.right
		}
	}
	return nil, false
}

// above says whether t stands above u in a tree that has both.
func (t *simTree) above(u *simTree) bool {
	if t.priority != u.priority {
		return t.priority > u.priority
	}
	return bytes.Compare(t.key, u.key) < 0
}

func (t *simTree) set(n *simTree) *simTree {
	if t == nil {
		return n
	}
	c := bytes.Compare(n.key, t.key)
	if c != 0 && n.above(t) {
		n.left, n.right = t.split(n.key)
		return n
	}
	u := *t
	switch {
	case c == 0:
		u.value = n.value
	case c < 0:
		u.left = t.left.set(n)
	default:
		u.right = t.right.set(n)
	}
	return &u
}

// split returns what is below key and what is not.
func (t *simTree) split(key []byte) (below, rest *simTree) {
	if t == nil {
		return nil, nil
	}
	u := *t
	if bytes.Compare(t.key, key) < 0 {
		u.right, rest = t.right.split(key)
		return &u, rest
	}
	below, u.left = t.left.split(key)
	return below, &u
}

// merge joins two trees, the keys of t all below those of r.
func (t *simTree) merge(r *simTree) *simTree {
	switch {
	case t == nil:
		return r
	case r == nil:
		return t
	case t.above(r):
		u := *t
		u.right = t.right.merge(r)
		return &u
	}
	u := *r
	u.left = t.merge(r.left)
	return &u
}

// without returns the tree without the keys in [lo, hi).
func (t *simTree) without(lo, hi []byte) *simTree {
	below, rest := t.split(lo)
	_, rest = rest.split(hi)
	return below.merge(rest)
}

func (t *simTree) delete(key []byte) *simTree {
	if _, ok := t.get(key); !ok {
		return t
	}
	return t.without(key, append(slices.Clone(key), 0))
}

// ceiling returns the first row whose key is not below key, floor the last one
// that is below it; nil where there is none.
func (t *simTree) ceiling(key []byte) (found *simTree) {
	for t != nil {
		if bytes.Compare(t.key, key) >= 0 {
			found, t = t, t.left
		} else {
			t = t.right
		}
	}
	return found
}

func (t *simTree) floor(key []byte) (found *simTree) {
	for t != nil {
		if bytes.Compare(t.key, key) < 0 {
			found, t = t, t.right
		} else {
			t = t.left
		}
	}
	return found
}

// simIterator walks over the rows in [lo, hi) of a tree.
type simIterator struct {
	tree, at *simTree
	lo, hi   []byte
}

func (it *simIterator) stand(at *simTree) bool {
	if at != nil && (bytes.Compare(at.key, it.lo) < 0 || bytes.Compare(at.key, it.hi) >= 0) {
		at = nil
	}
	it.at = at
	return at != nil
}

func (it *simIterator) First() bool { return it.SeekGE(it.lo) }
func (it *simIterator) Last() bool  { return it.SeekLT(it.hi) }
func (it *simIterator) SeekGE(key []byte) bool {
	if bytes.Compare(key, it.lo) < 0 {
		key = it.lo
	}
	return it.stand(it.tree.ceiling(key))
}
func (it *simIterator) SeekLT(key []byte) bool {
	if bytes.Compare(key, it.hi) > 0 {
		key = it.hi
	}
	return it.stand(it.tree.floor(key))
}
func (it *simIterator) Next() bool    { return it.SeekGE(append(slices.Clone(it.at.key), 0)) }
func (it *simIterator) Prev() bool    { return it.SeekLT(it.at.key) }
func (it *simIterator) Key() []byte   { return it.at.key }
func (it *simIterator) Value() []byte { return it.at.value }
func (it *simIterator) Close() error  { return nil }

// simView is a tree as a file.View.
type simView struct{ tree *simTree }

func (v simView) Get(key, buf []byte) ([]byte, bool, error) {
	value, ok := v.tree.get(key)
	return append(buf, value...), ok, nil
}

func (v simView) Scan(lo, hi []byte) (file.Iterator, error) {
	return &simIterator{tree: v.tree, lo: slices.Clone(lo), hi: slices.Clone(hi)}, nil
}

func (v simView) Close() error { return nil }

// simStore is a node's state on a simulated disk. A crash takes it back to
// what it was after some Commit not before the last flush that was done.
type simStore struct {
	open    *simTree   // with the open batch
	commits []*simTree // since the last flush that is done; the first is what it flushed
	dropped int        // commits in front of those
}

var (
	_ file.Store = (*simStore)(nil)
	_ file.View  = simView{}
)

func newSimStore(tree *simTree) *simStore {
	return &simStore{open: tree, commits: []*simTree{tree}}
}

func (s *simStore) committed() *simTree { return s.commits[len(s.commits)-1] }

func (s *simStore) Get(key, buf []byte) ([]byte, bool, error) { return simView{s.open}.Get(key, buf) }
func (s *simStore) Scan(lo, hi []byte) (file.Iterator, error) { return simView{s.open}.Scan(lo, hi) }
func (s *simStore) Set(key, value []byte)                     { s.open = s.open.set(newLeaf(key, value)) }
func (s *simStore) Add(key, value []byte)                     { s.Set(key, value) }
func (s *simStore) Delete(key []byte)                         { s.open = s.open.delete(key) }
func (s *simStore) DeleteRange(lo, hi []byte)                 { s.open = s.open.without(lo, hi) }
func (s *simStore) View() file.View                           { return simView{s.committed()} }

func (s *simStore) Commit() error {
	s.commits = append(s.commits, s.open)
	return nil
}

// flush begins to write the state to disk; done says that it is there.
func (s *simStore) flush() (done func()) {
	n := s.dropped + len(s.commits) - 1
	return func() {
		if n > s.dropped {
			s.commits = s.commits[n-s.dropped:]
			s.dropped = n
		}
	}
}

// install makes another tree the state, on disk when it returns.
func (s *simStore) install(tree *simTree) error {
	if s.open != s.committed() {
		return errors.New("a state is installed into an open batch")
	}
	s.dropped += len(s.commits)
	s.open, s.commits = tree, []*simTree{tree}
	return nil
}

// crash returns the state as a crash may leave it.
func (s *simStore) crash(rng *rand.Rand) *simStore {
	kept := 0
	switch rng.IntN(3) {
	case 0:
		kept = rng.IntN(len(s.commits))
	case 1:
		kept = len(s.commits) - 1
	}
	return newSimStore(s.commits[kept])
}

// sameRows says whether two trees have the same rows.
func sameRows(a, b *simTree) bool {
	if a == b {
		return true
	}
	return a != nil && b != nil && bytes.Equal(a.key, b.key) && bytes.Equal(a.value, b.value) &&
		sameRows(a.left, b.left) && sameRows(a.right, b.right)
}
