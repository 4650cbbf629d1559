package persist

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// TestConsumedSpaceComesBack: a stream that is put to and taken from keeps no
// more space than a few flushes' beside what it holds, however long it goes on.
func TestConsumedSpaceComesBack(t *testing.T) {
	const (
		turn = 2000  // records that are put and taken between two flushes: a few files
		held = 26000 // that wait
		size = 2000
	)
	for name, remove := range map[string]func(s *State, from, to uint64){
		"ranges": func(s *State, from, to uint64) {
			s.DeleteRange(RecordRange(7, "data", placeAt(from), placeAt(to)))
		},
		"rows": func(s *State, from, to uint64) {
			for ; from < to; from++ {
				s.Delete(RecordKey(7, "data", placeAt(from)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Pebble finds where many rows are deleted only on the real one.
				fs, dir := vfs.Default, t.TempDir()
				s, err := openState(fs, fs.PathJoin(dir, "state"), true, Options{}.withDefaults())
				require.NoError(t, err)
				head, tail := uint64(1), uint64(1)
				rng := rand.NewChaCha8([32]byte{})
				value := make([]byte, size) // that does not compress
				put := func() {
					for range turn {
						rng.Read(value)
						s.Set(RecordKey(7, "data", placeAt(tail)), value)
						tail++
					}
				}
				for tail <= held {
					put()
				}
				for range 40 {
					put()
					remove(s, head, head+turn)
					head += turn
					require.NoError(t, s.Commit())
					require.NoError(t, <-s.Flush())
					bubble.Pass(time.Second)
				}
				space := s.Bytes()
				require.NoError(t, s.close())
				require.Less(t, space, uint64(3*held*size/2))
			})
		})
	}
}

// TestRangesOverlap: the key at which a range of deletions begins lies in the
// range before it, and behind every row that may be in front of the range.
func TestRangesOverlap(t *testing.T) {
	key := func(pos gearsfs.Pos, seq gearsfs.Seq) []byte {
		return RecordKey(7, "data", gearsfs.Place{Pos: pos, Seq: seq})
	}
	for _, seq := range []gearsfs.Seq{1, 2, 255, 256, 257, 1 << 32, 1<<64 - 1} {
		before := overlapping(key(100, seq))
		require.Positive(t, bytes.Compare(before, key(100, seq-1)), seq) // an empty record has the Pos of the next one
		require.Negative(t, bytes.Compare(before, key(100, seq)), seq)
	}
	stream, _ := StreamRange(TableRecord, 7, "abcdefghijklmnopq")
	file, _ := FileRange(TableRecord, 7)
	for _, lo := range [][]byte{key(0, 0), key(5, 0), stream, file, StreamKey(7, "data"), {byte(TableRecord)}, {}} {
		require.Equal(t, lo, overlapping(lo))
	}
}

// TestDropOfOneStream: what removes all of a stream leaves those of like keys.
func TestDropOfOneStream(t *testing.T) {
	s := newState(t, vfs.NewMem())
	value := []byte("v")
	for _, key := range []gearsfs.Key{"abcdefgg", "abcdefgg\xff", "abcdefgg\xff\xff", "abcdefgh", "abcdefghi"} {
		s.Set(RecordKey(7, key, placeAt(1)), value)
	}
	require.NoError(t, s.Commit())
	s.DeleteRange(StreamRange(TableRecord, 7, "abcdefgh"))
	require.NoError(t, s.Commit())
	for key, there := range map[gearsfs.Key]bool{"abcdefgg": true, "abcdefgg\xff": true, "abcdefgg\xff\xff": true, "abcdefgh": false, "abcdefghi": true} {
		_, ok, err := s.Get(RecordKey(7, key, placeAt(1)), nil)
		require.NoError(t, err)
		require.Equal(t, there, ok, "%q", key)
	}
	require.NoError(t, s.close())
}
