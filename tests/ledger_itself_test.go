package tests

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// The ledger must see what the other tests rely on it to see.
func TestTheLedgerSeesFaults(t *testing.T) {
	sound := func() *ledger {
		l := newLedger("/q", 2)
		l.put = []uint64{2, 1}
		l.taken = map[item]gearsfs.Seq{{0, 0}: 1, {1, 0}: 2, {0, 1}: 3}
		return l
	}
	require.NoError(t, sound().check())

	lost := sound()
	delete(lost.taken, item{0, 1})
	require.ErrorContains(t, lost.check(), "lost")

	reordered := sound()
	reordered.taken[item{0, 0}], reordered.taken[item{0, 1}] = 3, 1
	require.ErrorContains(t, reordered.check(), "behind its putter's")

	invented := sound()
	invented.taken[item{1, 1}] = 4
	require.ErrorContains(t, invented.check(), "nobody put")
}
