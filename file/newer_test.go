package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// TestNothingNewer: what is newer is gone, row and all, and what is left is older.
func TestNothingNewer(t *testing.T) {
	for _, data := range []string{"", "x"} { // empty ones share their position
		nothingNewer(t, data)
	}
}

func nothingNewer(t *testing.T, data string) {
	r := newRig(t)
	records := make([]string, 500)
	for i := range records {
		records[i] = data
	}
	var ino gearsfs.Ino
	const n = 3000
	for i := range n / 500 {
		ino = gearsfs.Ino(r.do(putOp("q", records...)).Ino)
		if i == 0 {
			r.do(byReceipt(hour, 2, "q"))
		}
		for r.info(uint64(ino), "q").Records > 0 {
			leased := r.do(byReceipt(hour, 500, "q"))
			r.do(&wire.Settle{Receipts: receipts(leased)})
		}
	}
	for after := range gearsfs.Seq(n) {
		found, err := r.m.Peek(ino, "q", PeekWhat{Follow: true, After: after}, gearsfs.Root)
		if after >= 2 {
			require.ErrorIs(t, err, gearsfs.ErrEmpty, "after %d: %v", after, found)
			continue
		}
		require.NoError(t, err)
		require.EqualValues(t, after+1, found[0].Seq)
	}
}

// TestNothingNewerNear: likewise near the end, where rows are looked at one by one.
func TestNothingNewerNear(t *testing.T) {
	r := newRig(t)
	ino := gearsfs.Ino(r.do(putOp("q", "a", "b", "c")).Ino)
	leased := r.do(byReceipt(hour, 3, "q"))
	r.do(&wire.Settle{Receipts: receipts(leased)[2:]})
	r.data.State.Delete(persist.RecordKey(ino, "q", gearsfs.Place{Pos: 2, Seq: 3})) // as it is cleaned up some time
	require.NoError(t, r.data.State.Commit())
	found, err := r.m.Peek(ino, "q", PeekWhat{Follow: true, After: 1}, gearsfs.Root)
	require.NoError(t, err)
	require.EqualValues(t, 2, found[0].Seq)
	leased.Records = leased.Records[1:2]
	r.do(&wire.Settle{Receipts: receipts(leased)})
	r.data.State.Delete(persist.RecordKey(ino, "q", gearsfs.Place{Pos: 1, Seq: 2}))
	require.NoError(t, r.data.State.Commit())
	found, err = r.m.Peek(ino, "q", PeekWhat{Follow: true, After: 1}, gearsfs.Root)
	require.ErrorIs(t, err, gearsfs.ErrEmpty, "%v", found)
}
