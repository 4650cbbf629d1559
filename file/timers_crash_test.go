package file

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// story is entries that use all that streams have to do with log time, and what
// they were answered.
type story struct {
	*client
	entries []*wire.Entry
	answers [][]*wire.Answer
}

// tell applies a command as an entry of its own, some time after the last one.
func (s *story) tell(after uint64, op any) *wire.Answer {
	s.t.Helper()
	s.now += after
	cmd, jump := s.command(op), s.jump
	answers := s.entry(cmd)
	require.NoError(s.t, answerError(answers[0]), "%v", cmd)
	s.entries = append(s.entries, &wire.Entry{Time: s.now, Jump: jump, Commands: []*wire.Command{proto.CloneOf(cmd)}})
	s.answers = append(s.answers, []*wire.Answer{proto.CloneOf(answers[0])})
	return answers[0]
}

func tellTimers(t *testing.T) *story {
	r := newRig(t)
	s := &story{client: r.client(1)}
	s.tell(0, putOp("jobs", "a", "b", "c", "d", "e"))
	s.tell(0, settings("jobs", &wire.Settings{Tries: new(uint32(2)), Age: new(60 * second)}))
	late := putOp("jobs", "late")
	late.Delay = 5 * second
	s.tell(0, late)
	own := s.tell(0, leaseFor(2*second, 2, "jobs"))
	free := s.tell(0, byReceipt(3*second, 2, "jobs"))
	s.tell(0, &wire.Settle{Receipts: receipts(own)[:1], Extend: 8 * second})
	s.tell(0, &wire.Settle{Receipts: receipts(free)[:1], Return: true, Delay: second})
	s.tell(2*second, &wire.Tick{}) // the second of own and the first of free come back
	again := s.tell(0, leaseFor(second, 2, "jobs"))
	require.Len(t, again.Records, 2)
	s.tell(second, &wire.Tick{}) // their tries are over
	s.tell(second, &wire.Settle{Receipts: receipts(own)[:1]})
	s.tell(second, takeOp(9, "jobs"))
	s.tell(0, takeOp(9, "jobs.dead"))
	s.tell(0, settings("ring", &wire.Settings{Records: new(uint64(2)), Full: new(uint32(gearsfs.FullDropOldest))}))
	s.tell(0, putOp("ring", "1", "2"))
	ringed := s.tell(0, leaseFor(second, 2, "ring"))
	s.leapBy(hour)
	s.tell(0, &wire.Tick{}) // they are owed an hour
	s.tell(0, &wire.Settle{Receipts: receipts(ringed)[1:], Return: true})
	s.tell(0, putOp("ring", "3"))
	s.tell(0, putOp("jobs", "old"))
	s.tell(60*second, &wire.Tick{})
	s.tell(0, &wire.Update{Target: inRoot, Key: "ring", Record: &wire.NewRecord{Data: []byte("only")}})
	s.tell(0, configure("jobs", func(c *wire.Configure) { c.Drop = true }))
	return s
}

// TestTimerCrashPoints loses power behind each entry of the story, with the
// state flushed three entries earlier, and applies the rest again: all answers are the first ones, the index of what is due is right, and the tables end up
// the same.
func TestTimerCrashPoints(t *testing.T) {
	s := tellTimers(t)
	s.check()
	want, due := string(s.dump()), s.nextDue()
	dead := s.info(s.answers[0][0].Ino, "jobs.dead")
	require.EqualValues(t, 3, dead.Tail.Seq, "the story moves two to the dead stream")
	for crash := 1; crash <= len(s.entries); crash++ {
		t.Run(fmt.Sprint(crash), func(t *testing.T) { s.crashBehind(t, crash, want, due) })
	}
}

func (s *story) crashBehind(t *testing.T, crash int, want string, due uint64) {
	r := &rig{t: t, fs: vfs.NewCrashableMem()}
	r.open(true)
	init := &wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}}
	_, err := r.m.Apply(1, 1, &wire.Entry{Time: rigStart + 1e6, Commands: []*wire.Command{init}})
	require.NoError(t, err)
	flushed := max(0, crash-3)
	for i := range crash {
		if i == flushed {
			require.NoError(t, <-r.data.State.Flush())
		}
		r.replay(s, i)
	}
	left := r.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	require.NoError(t, r.data.Close())
	r.fs = left
	r.open(false)
	applied, _ := r.m.Applied()
	require.EqualValues(t, flushed+1, applied)
	r.check()
	for i := flushed; i < len(s.entries); i++ {
		r.replay(s, i)
	}
	r.check()
	require.Equal(t, due, r.nextDue())
	require.Equal(t, want, string(r.dump()))
	require.NoError(t, r.data.Close())
}

// replay applies an entry of a story.
func (r *rig) replay(s *story, i int) {
	r.t.Helper()
	answers, err := r.m.Apply(uint64(i+2), 1, s.entries[i])
	require.NoError(r.t, err)
	require.Equal(r.t, s.answers[i][0].String(), answers[0].String(), "entry %d", i)
}
