package persist

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
)

// TestViewsShareASnapshot: between two commits Views have one snapshot, and each
// way in which rows may change gives those behind it another. What ended keeps
// none.
func TestViewsShareASnapshot(t *testing.T) {
	s := newState(t, vfs.NewMem())
	snapshots := func() int { return s.tables.db.Metrics().Snapshots.Count }
	shows := func(v View, key string) (value []byte) {
		t.Helper()
		value, _, err := v.Get([]byte(key), nil)
		require.NoError(t, err)
		return value
	}
	large := bytes.Repeat([]byte("large"), overlayBytesMax/4)
	changes := map[string]func(){
		"a row":            func() { s.Set([]byte("k"), []byte("new")) },
		"an added row":     func() { s.Add([]byte("added"), nil); s.Set([]byte("k"), []byte("new")) },
		"a batch":          func() { s.DeleteRange([]byte("x"), []byte("y")); s.Set([]byte("k"), []byte("new")) },
		"more than memory": func() { s.Set([]byte("large"), large); s.Set([]byte("k"), []byte("new")) },
		"other tables":     nil,
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			s.Set([]byte("k"), []byte("old"))
			s.Delete([]byte("added"))
			require.NoError(t, s.Commit())
			before, other := s.View(), s.View()
			require.Equal(t, 1, snapshots())
			if change == nil {
				fsys := vfs.NewMem()
				tables, err := openTables(fsys, "other", true, smallData(fsys).withDefaults())
				require.NoError(t, err)
				require.NoError(t, tables.db.Set([]byte("k"), []byte("new"), pebble.NoSync))
				require.NoError(t, s.replace(tables))
			} else {
				change()
				open := s.View()
				require.Equal(t, []byte("old"), shows(open, "k"), "it is not committed")
				require.NoError(t, open.Close())
				require.NoError(t, s.Commit())
			}
			after := s.View()
			require.Equal(t, []byte("new"), shows(after, "k"))
			require.Equal(t, []byte("old"), shows(before, "k"))
			require.NoError(t, before.Close())
			require.Equal(t, []byte("old"), shows(other, "k"))
			require.NoError(t, other.Close())
			require.NoError(t, after.Close())
			require.Equal(t, 1, snapshots(), "the one that the next View has")
		})
	}
	s.Set([]byte("k"), nil)
	require.NoError(t, s.Commit())
	require.NoError(t, s.settle())
	require.Zero(t, snapshots(), "nobody has looked since")
	require.NoError(t, s.View().Close())
	require.NoError(t, s.close(), "the last one ends with the state")
}

// TestLastViewKeepsNothing: the snapshot that stays when nobody looks any more, or
// that of a View that is open, keeps no row from being removed that was deleted
// before; only what is changed behind it is kept, and the snapshot that stays does
// not outlive the first such change.
func TestLastViewKeepsNothing(t *testing.T) {
	s := newState(t, vfs.NewMem())
	row := func(i int) []byte { return fmt.Appendf(nil, "r%06d", i) }
	for i := range 3000 {
		s.Set(row(i), bytes.Repeat([]byte{byte(i)}, 1500))
		require.NoError(t, s.Commit())
	}
	require.NoError(t, <-s.Flush())
	full := s.Bytes()
	for i := range 3000 {
		s.Delete(row(i))
		require.NoError(t, s.Commit())
	}
	open := s.View()
	require.NoError(t, s.View().Close())
	require.NoError(t, <-s.Flush())
	require.NoError(t, s.tables.db.Compact(t.Context(), []byte{0}, []byte{255}, false))
	require.Equal(t, 1, s.tables.db.Metrics().Snapshots.Count)
	var rows uint64
	levels, err := s.tables.db.SSTables(pebble.WithProperties())
	require.NoError(t, err)
	for _, tables := range levels {
		for _, table := range tables {
			rows += table.Properties.NumEntries
		}
	}
	require.Zero(t, rows, "of %d bytes", full)
	require.NoError(t, open.Close())
	require.NoError(t, s.close())
}
