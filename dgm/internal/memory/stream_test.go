package memory

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
)

// Ids are forgotten by time and by count, oldest first, and a stream is looked at
// when the oldest leaves the window.
func TestIDs(t *testing.T) {
	const window = 100
	var ids putIDs
	for i := range uint64(10) {
		ids.remember(fmt.Sprint(i), i+1, 10*i)
	}
	seq, ok := ids.known("0", window-1, window)
	require.True(t, ok)
	require.EqualValues(t, 1, seq)
	_, ok = ids.known("0", window, window)
	require.False(t, ok)
	ids.remember("0", 11, window)
	ids.forget(window+45, window)
	require.Len(t, ids.last, 6, "5 to 9, and 0 again")
	seq, ok = ids.known("0", window+45, window)
	require.True(t, ok)
	require.EqualValues(t, 11, seq)
	ids.forget(2*window, window)
	require.Empty(t, ids.last)
	require.Empty(t, ids.order)
	for i := range gearsfs.IDsMax + 5 {
		ids.remember(fmt.Sprint(i), 1, 0)
	}
	ids.forget(0, window)
	require.Len(t, ids.last, gearsfs.IDsMax)
	_, ok = ids.known("4", 0, window)
	require.False(t, ok)
}

// A stream is looked at when the first of what it has is due, and what is over is
// not kept.
func TestDues(t *testing.T) {
	s := newQueue(Place{1, "k"}, 5_000_000, 0)
	require.Zero(t, s.next())
	s.ids.remember("a", 1, 7)
	s.State().IDWindow = 100
	require.EqualValues(t, 107, s.next())
	for range 3 {
		s.Append([]byte("x"), "", 50)
	}
	s.State().Age = 40
	require.EqualValues(t, 90, s.next())
	taken, err := s.Lease(nil, 3, 100, stream.Grant{Fence: 1, Deadline: 80})
	require.NoError(t, err)
	require.EqualValues(t, 80, s.next())
	for i := range 10_000 {
		s.Extend(taken[0].Place, 200+uint64(i), 0)
	}
	require.Less(t, len(s.dues), 200)
	require.NoError(t, s.Ack(taken[1].Place))
	at, out, ok := s.over(80)
	require.True(t, ok)
	require.Equal(t, taken[2].Place, at)
	require.True(t, out.Leased)
	s.Return(at)
	_, _, ok = s.over(10_000)
	require.False(t, ok)
	require.EqualValues(t, 90, s.next())
}
