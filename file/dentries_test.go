package file

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// countsNames fails where the count of a directory's names is not that of those that
// the cache holds.
func (r *rig) countsNames() {
	r.t.Helper()
	want := map[gearsfs.Ino]uint64{}
	for key, s := range r.m.dentries.slots {
		if s.value.ino != 0 {
			want[key.dir]++
		}
	}
	require.Equal(r.t, want, r.m.dentries.found)
}

// TestNamesAreCounted: names are made, renamed, exchanged, replaced and removed, with
// room for few of them, and looked up and listed meanwhile: each answer is what a map
// says, and names that are missing are never missed where the cache has forgotten some.
func TestNamesAreCounted(t *testing.T) {
	for _, room := range []int{3, 12, dentriesMax} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			seed := rand.Uint64()
			t.Log("seed", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			r := newRig(t)
			dirs := []gearsfs.Ino{r.mkdir(1, "a", 0o755), r.mkdir(1, "b", 0o755)}
			r.m.dentries.max = room
			have := map[dentryKey]gearsfs.Ino{}
			pick := func() dentryKey { return dentryKey{dirs[rng.IntN(2)], fmt.Sprint(rng.IntN(10))} }
			for range 500 {
				from, to := pick(), pick()
				switch ino := have[from]; {
				case rng.IntN(40) == 0:
					r.reopen()
					r.m.dentries.max = room
				case ino == 0:
					have[from] = r.create(from.dir, from.name, 0o644)
				case rng.IntN(3) == 0:
					r.do(r.unlink(from.dir, from.name, false))
					delete(have, from)
				case from == to:
				case have[to] != 0 && rng.IntN(2) == 0:
					r.do(r.rename(from.dir, from.name, to.dir, to.name, renameExchange))
					have[from], have[to] = have[to], ino
				default:
					r.do(r.rename(from.dir, from.name, to.dir, to.name, 0))
					delete(have, from)
					have[to] = ino
				}
				r.countsNames()
				ask := pick()
				attr, err := r.m.Lookup(ask.dir, ask.name, root)
				if have[ask] == 0 {
					require.ErrorIs(t, err, gearsfs.ErrNotFound)
				} else {
					require.NoError(t, err)
					require.Equal(t, have[ask], attr.Ino)
				}
				if rng.IntN(10) == 0 {
					entries, err := r.m.ReadDir(ask.dir, "", 100, root)
					require.NoError(t, err)
					for _, e := range entries {
						require.Equal(t, have[dentryKey{ask.dir, e.Name}], e.Attr.Ino)
					}
				}
				r.countsNames()
			}
			r.check()
		})
	}
}

// TestListedNamesAreFound: who has listed a directory finds its names, and what it
// lacks, in memory, but not what was listed before a change.
func TestListedNamesAreFound(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir(1, "d", 0o755)
	f := r.create(dir, "f", 0o644)
	g := r.create(dir, "g", 0o644)
	r.reopen()
	_, err := r.m.ReadDir(dir, "", 100, root)
	require.NoError(t, err)
	for name, ino := range map[string]gearsfs.Ino{"f": f, "g": g, "h": 0} {
		n, err, ok := r.m.lookupCached(dir, name, root)
		require.True(t, ok)
		require.Equal(t, ino, n.attr.Ino)
		require.Equal(t, ino == 0, err != nil)
	}
	h := r.create(dir, "h", 0o644)
	a, err := r.m.Lookup(dir, "h", root)
	require.NoError(t, err)
	require.Equal(t, h, a.Ino)

	r.reopen()
	late := r.m.read() // lists before the rename, and is done behind it
	names, err := dirents(late.view, dir, "", 100)
	require.NoError(t, err)
	late.learnedNames = names
	r.do(&wire.Rename{Dir: uint64(dir), Name: "f", NewDir: uint64(dir), NewName: "i"})
	late.close()
	_, err = r.m.Lookup(dir, "f", root)
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	a, err = r.m.Lookup(dir, "i", root)
	require.NoError(t, err)
	require.Equal(t, f, a.Ino)
	r.countsNames()
}
