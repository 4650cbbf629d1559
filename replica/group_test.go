package replica

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPutAndReopen(t *testing.T) {
	log, machine := new(memLog), new(memMachine)
	f := openTest(t, log, machine, nil)
	require.Equal(t, uint64(7), f.Status().Leader)
	for _, durable := range []bool{false, true} {
		out := f.put("a", durable)
		require.NoError(t, out.err)
		require.NotZero(t, out.answer.FirstSeq)
	}
	require.NoError(t, f.Barrier(context.Background()))
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.Equal(t, []string{"a", "a"}, machine.records())
	require.Equal(t, log.Last(), log.First()-1, "nothing to replay after Close")

	again := openTest(t, log, machine.restart(), nil)
	require.NoError(t, again.put("b", true).err)
	require.Equal(t, []string{"a", "a", "b"}, again.machine.records())
	require.Greater(t, again.Status().Term, f.Status().Term)
	require.NoError(t, again.Close())
}
