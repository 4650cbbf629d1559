package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// FuzzCommand: a command of any bytes is done or refused; the tables stay
// sound, and trying it again gives the same answer where it was done.
func FuzzCommand(f *testing.F) {
	put := putOp("q", "x")
	put.Records[0].Id, put.Records[0].Type, put.Delay = "A", "t", 5
	lease := leaseOp(1, "q", "data")
	lease.LeaseFor, lease.ByReceipt, lease.Tries = 7, true, 2
	settle := &wire.Settle{Receipts: []*wire.Receipt{{Ino: 2, Key: "q", Seq: 1, Fence: 1}}, Return: true, Delay: 1, Tries: 1}
	all := tx(put, takeOp(2, "q"), lookOp("data", 3), settle, ifSeq(updateOp("r", "y"), 0),
		condition("q", func(c *wire.Condition) { c.AtLeast, c.HeadSeq, c.Empty = 1, ptr(uint64(2)), ptr(false) }))
	set := settingsOp("q", &wire.Settings{Type: ptr("t"), IdWindow: ptr(uint64(1)), AppendOnly: ptr(true), Age: ptr(uint64(9))})
	for _, op := range []any{put, lease, settle, all, set, ifSeq(updateOp("q", "z"), 3), moveOp("q", "data", 2), copyOp(2, "g"),
		&wire.CopyFile{From: inRoot, To: inRoot}, tx(updateOp("q", "new"), takeOp(1, "q"), put)} {
		b, err := as(gearsfs.Root, op).MarshalVT()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd := new(wire.Command)
		if cmd.UnmarshalVT(b) != nil {
			return
		}
		r := newRig(t)
		c := r.client(1)
		c.must(putOp("q", "a", "b", "c"))
		c.must(leaseOp(1, "q"))
		cmd.SessionMinted, cmd.SessionSalt, cmd.Seq, cmd.Confirmed, cmd.Unconfirmed = uint64(c.id.Minted), c.id.Salt, 9, 0, nil
		a := r.entry(cmd)[0]
		r.check()
		_, isEnd := cmd.Op.(*wire.Command_EndSession)
		if _, again := cmd.Op.(*wire.Command_Confirm); a.Code != 0 || again || isEnd || cmd.Close {
			return
		}
		second := r.entry(cmd)[0]
		require.Zero(t, second.Code, second.Reason)
		require.Equal(t, []uint64{a.FirstSeq, a.LastSeq, a.Count}, []uint64{second.FirstSeq, second.LastSeq, second.Count})
		require.Len(t, second.Steps, len(a.Steps))
		r.check()
	})
}
