package persist

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// TestRecordsAreApart: no file has rows of records and of other tables, neither
// what flushes write nor what compactions make of it, which also run where the
// state is opened again.
func TestRecordsAreApart(t *testing.T) {
	fs := vfs.NewMem()
	s := newState(t, fs)
	seq := uint64(0)
	flush := func(s *State) {
		for range 100 {
			seq++
			s.Set(RecordKey(7, "data", gearsfs.Place{Pos: gearsfs.Pos(seq * 10), Seq: gearsfs.Seq(seq)}), make([]byte, 3000))
			s.Set(StreamKey(7, "data"), binary.BigEndian.AppendUint64(nil, seq))
			s.Set([]byte{byte(TableVolume)}, binary.BigEndian.AppendUint64(nil, seq))
			require.NoError(t, s.Commit())
		}
		require.NoError(t, <-s.Flush())
	}
	check := func(s *State) {
		levels, err := s.tables.db.SSTables()
		require.NoError(t, err)
		records, others := 0, 0
		for _, tables := range levels {
			for _, table := range tables {
				first, last := Table(table.Smallest.UserKey[0]), Table(table.Largest.UserKey[0])
				require.Equal(t, first == TableRecord, last == TableRecord, "from %q to %q", first, last)
				if first == TableRecord {
					records++
				} else {
					require.Equal(t, first < TableRecord, last < TableRecord, "from %q to %q", first, last)
					others++
				}
			}
		}
		require.Positive(t, records)
		require.Positive(t, others)
	}
	for range 4 {
		flush(s)
		check(s)
	}
	require.NoError(t, s.close())
	s, err := openState(fs, "state", false, smallData(fs).withDefaults())
	require.NoError(t, err)
	for range 4 {
		flush(s)
		require.NoError(t, s.tables.db.Compact(context.Background(), []byte{0}, []byte{255}, false))
		check(s)
	}
	it, err := s.Scan(RecordRange(7, "data", gearsfs.Place{}, gearsfs.Place{Pos: 1 << 60}))
	require.NoError(t, err)
	n := uint64(0)
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	require.NoError(t, it.Close())
	require.Equal(t, seq, n)
	require.NoError(t, s.close())
}
