package mount

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

func TestDentries(t *testing.T) {
	d := newDentries()
	a, b, c := name{1, "a"}, name{1, "b"}, name{2, "c"}
	d.learn(10, a)
	d.learn(10, b)
	require.Equal(t, []name{a, b}, d.of(10), "an inode has several names")
	d.learn(11, a)
	require.Equal(t, []name{b}, d.of(10), "a name leads to one")
	require.Equal(t, []name{a}, d.of(11))

	d.move(a, c, false)
	require.Equal(t, []name{c}, d.of(11))
	d.move(c, b, true)
	require.Equal(t, []name{b}, d.of(11))
	require.Equal(t, []name{c}, d.of(10))
	d.move(c, b, false)
	require.Equal(t, []name{b}, d.of(10))
	require.Empty(t, d.of(11), "what was replaced has no name")

	d.told(b, func() {})
	require.Equal(t, []name{b}, d.of(10), "an OPEN by it may be under way")
	d.told(b, func() {})
	require.Empty(t, d.of(10))
	d.learn(10, b)
	d.told(b, func() { d.learn(10, b) })
	d.told(b, func() {})
	require.Equal(t, []name{b}, d.of(10), "what was told anew was not forgotten")

	d.drop(b)
	require.Empty(t, d.of(10))
	require.Empty(t, d.leads)
	require.Empty(t, d.names)
}

// TestDentriesAreBounded: the kernel is told to forget a name for each that is
// too many.
func TestDentriesAreBounded(t *testing.T) {
	d := newDentries()
	const extra = 2000
	told := map[name]bool{}
	for i := range uint64(dentriesMax + extra) {
		old, full := d.learn(gearsfs.Ino(i), name{1, randomName()})
		require.True(t, !full || i >= dentriesMax && !told[old])
		if full {
			told[old] = true
			d.told(old, func() {})
		}
	}
	require.Greater(t, len(told), extra/2)
	for n := range told { // as if a second had passed
		l := d.leads[n]
		l.since = l.since.Add(-2 * underway)
		d.leads[n] = l
	}
	for i := range uint64(dentriesMax) {
		if old, full := d.learn(gearsfs.Ino(i), name{2, randomName()}); full {
			d.told(old, func() {})
			d.drop(old)
		}
	}
	require.Less(t, len(d.leads), dentriesMax+extra/2, "what is over goes when room is looked for")
}
