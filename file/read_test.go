package file

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// TestReadersSeeWholeEntries: while entries are applied, each reader sees the
// state between two of them. Every entry fills a file with one byte, gives a
// directory that many entries, and moves a name between two directories.
func TestReadersSeeWholeEntries(t *testing.T) {
	const rounds, size = 200, 70 * k
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	a, b := r.mkdir(1, "a", 0o755), r.mkdir(1, "b", 0o755)
	moved := r.create(a, "moved", 0o644)
	r.m.nodes.max, r.m.dentries.max = 4, 4 // so that readers come by the View, too
	require.NoError(t, r.write(f, 0, string(make([]byte, size))))

	var readers sync.WaitGroup
	stop := make(chan struct{})
	reader := func(read func() bool) {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !read() {
					return
				}
			}
		})
	}
	reader(func() bool {
		c, err := r.m.Read(f, 0, size, root, nil)
		got := c.Data
		return assert.NoError(t, err) && assert.Len(t, got, size) &&
			assert.Equal(t, size, bytes.Count(got, got[:1]), "a write was seen in part")
	})
	reader(func() bool {
		entries, err := r.m.ReadDir(b, "", 1000, root)
		if !assert.NoError(t, err) {
			return false
		}
		for _, e := range entries {
			if e.Name != "moved" && !assert.EqualValues(t, 1, e.Attr.Nlink) {
				return false
			}
		}
		return true
	})
	reader(func() bool {
		attr, err := r.m.GetAttr(moved)
		return assert.NoError(t, err) && assert.EqualValues(t, 1, attr.Nlink)
	})
	reader(func() bool {
		_, err := r.m.Lookup(a, "moved", alice)
		if err != nil && !assert.ErrorIs(t, err, gearsfs.ErrNotFound) {
			return false
		}
		_, err = r.m.Resolve("/f", true, alice)
		return assert.NoError(t, err)
	})
	from, to := a, b
	for i := range rounds {
		r.entry(
			as(root, &wire.Write{Ino: uint64(f), Data: bytes.Repeat([]byte{byte(i)}, size)}),
			as(root, &wire.Rename{Dir: uint64(from), Name: "moved", NewDir: uint64(to), NewName: "moved"}),
			as(root, &wire.Make{Dir: uint64(b), Name: fmt.Sprint(i), Mode: modeFile | 0o644}),
		)
		from, to = to, from
	}
	close(stop)
	readers.Wait()
	r.check()
}

// TestReadersFillCaches: what one reader had to read from the tables the next
// finds in memory, and what is applied meanwhile is not lost.
func TestReadersFillCaches(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	require.NoError(t, r.write(f, 0, "hello"))
	r.reopen()
	_, ok := r.m.cachedInode(f)
	require.False(t, ok)
	require.EqualValues(t, 5, r.attr(f).Size)
	n, ok := r.m.cachedInode(f)
	require.True(t, ok)
	require.EqualValues(t, 5, n.attr.Size)

	late := r.m.read() // begins before the write and ends behind it
	stale, err := late.loadInode(f)
	require.NoError(t, err)
	late.learned = append(late.learned, stale)
	require.NoError(t, r.write(f, 5, " world"))
	late.close()
	require.EqualValues(t, 11, r.attr(f).Size)
}

// TestMemoryIsBounded: the caches forget what was not used.
func TestMemoryIsBounded(t *testing.T) {
	r := newRig(t)
	r.m.nodes.max, r.m.dentries.max, r.m.streams.max = 10, 10, 5
	for i := range 100 {
		f := r.create(1, fmt.Sprint(i), 0o644)
		require.NoError(t, r.write(f, 0, "x"))
		require.LessOrEqual(t, len(r.m.nodes.slots), 10)
		require.LessOrEqual(t, len(r.m.dentries.slots), 10)
		require.LessOrEqual(t, len(r.m.streams.slots), 5)
	}
	for i := range 100 {
		a, err := r.m.Lookup(1, fmt.Sprint(i), root)
		require.NoError(t, err)
		require.EqualValues(t, 1, a.Size)
	}
	require.LessOrEqual(t, len(r.m.nodes.slots), 10)
	r.check()
}
