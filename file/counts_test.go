package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// TestCounts: each thing that happens to a record is counted once, and so is a
// command that was sent twice.
func TestCounts(t *testing.T) {
	r := newRig(t)
	require.Contains(t, r.m.Counts().Commands, "copy_range", "also those that have not come")
	c := r.client(1)
	put := c.command(putOp("jobs", "a", "b", "c", "d"))
	r.entry(put)
	require.NoError(t, answerError(r.entry(put)[0]))
	held := receipts(c.must(leaseOp(3, "jobs")))
	c.must(&wire.Settle{Receipts: held[:1]})
	c.must(&wire.Settle{Receipts: held[1:2], Return: true, Delay: 1e9})
	c.must(&wire.Settle{Receipts: held[2:3], Return: true, Tries: 1})
	require.Equal(t, []string{"d"}, datas(c.must(takeOp(1, "jobs")).Records))
	_, err := c.ask(takeOp(1, "jobs"))
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	c.must(&wire.Transact{Steps: []*wire.Step{
		{Op: &wire.Step_Take{Take: takeOp(1, "jobs.dead")}},
		{Op: &wire.Step_Put{Put: putOp("done", "C")}},
	}})
	c.must(&wire.Update{Target: inRoot, Key: "register", Record: &wire.NewRecord{Data: []byte("v")}})
	c.must(settingsOp("last", &wire.Settings{Full: ptr(uint32(gearsfs.FullDropOldest)), Records: ptr(uint64(1)), Age: ptr(uint64(1e9))}))
	c.must(putOp("last", "1"))
	c.must(putOp("last", "2"))
	r.now += 2e9
	r.entry()

	got := r.m.Counts()
	require.Equal(t, RecordCounts{Put: 4 + 1 + 1 + 2, Taken: 2, Leased: 3, Acked: 1, Returned: 1, Dead: 1, Discarded: 2}, got.Records)
	require.Equal(t, CommandCount{Done: 3}, got.Commands["put"])
	require.Equal(t, CommandCount{Done: 2, Refused: 1}, got.Commands["take"])
	require.Equal(t, CommandCount{Done: 3}, got.Commands["settle"])
	require.Equal(t, CommandCount{Done: 1}, got.Commands["transact"])
	require.Equal(t, CommandCount{Done: 1}, got.Commands["update"])
	r.check()
}
