package file

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

func tellCommands(t *testing.T) *story {
	r := newRig(t)
	s := &story{client: r.client(1)}
	put := func(key string, ids ...string) *wire.Put {
		op := &wire.Put{Target: inRoot, Key: key}
		for _, id := range ids {
			op.Records = append(op.Records, withID(id, id))
		}
		return op
	}
	ino := gearsfs.Ino(s.tell(0, updateOp("reg", "one")).Ino)
	s.tell(0, ifSeq(updateOp("reg", "two"), 1))
	s.tell(0, put("q", "A", "B"))
	s.tell(0, put("q", "B", "C", "C"))
	s.tell(0, settingsOp("q", &wire.Settings{IdWindow: ptr(uint64(second))}))
	s.tell(2*second, put("q", "A", "D"))
	leased := s.tell(0, leaseOp(1, "q"))
	both := s.tell(0, tx(takeOp(1, "q"), lookOp("q", 9), leaseOp(1, "q"), put("out", "X"), updateOp("reg", "three"),
		&wire.Settle{Receipts: receipts(leased)}, condition("q", func(c *wire.Condition) { c.AtLeast = 3 })))
	s.tell(0, tx(updateOp("q", "all the rest"), &wire.Settle{Receipts: receipts(both.Steps[2]), Return: true}))
	s.tell(0, putOp("q", "1", "2", "3"))
	s.tell(0, moveOp("q", "data", 2))
	s.tell(0, copyOp(ino, "copy"))
	s.tell(0, moveOp("q", "data", 0))
	s.tell(0, copyOp(ino, "copy"))
	s.tell(0, settingsOp("data", &wire.Settings{AppendOnly: ptr(true), Type: ptr("t")}))
	s.tell(0, tx(takeOp(2, "data"), put("q", "A")))
	s.tell(0, configure("q", func(c *wire.Configure) { c.Drop = true }))
	return s
}

// TestCommandCrashPoints: as TestTimerCrashPoints, of a story of updates, ids,
// transactions, moves and copies; what was stored for retries is there, too.
func TestCommandCrashPoints(t *testing.T) {
	s := tellCommands(t)
	s.check()
	want, due := string(s.dump()), s.nextDue()
	for crash := 1; crash <= len(s.entries); crash++ {
		t.Run(fmt.Sprint(crash), func(t *testing.T) { s.crashBehind(t, crash, want, due) })
	}
	require.Len(t, s.m.sessions.rows.slots[s.id].value.row.Answers, len(s.entries))
}
