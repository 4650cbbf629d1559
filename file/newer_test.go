package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
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
