package memory

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/wire"
)

// node is a node with a file that has streams in memory, and some on disk.
type node struct {
	t       *testing.T
	state   *file.Machine
	machine *Machine
	ino     gearsfs.Ino
	index   uint64
	now     uint64
	woken   []Place
	owned   sync.WaitGroup
}

func newNode(t *testing.T, inMemory ...gearsfs.Key) *node {
	data, err := persist.Open("/data", persist.Options{FS: vfs.NewMem(), Create: true, Name: "n"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, data.Close()) })
	n := &node{t: t, now: 1_700_000_000_000_000_000}
	n.state, err = file.New(data.State, nil)
	require.NoError(t, err)
	n.machine = New(n.state, n)
	t.Cleanup(n.owned.Wait)
	n.apply(&wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}})
	n.ino = gearsfs.Ino(n.apply(&wire.Command{Op: &wire.Command_Make{Make: &wire.Make{Dir: uint64(gearsfs.RootIno), Name: "q", Mode: 0o100644}}}).Attr.Ino)
	yes := true
	for _, key := range inMemory {
		n.configure(&wire.Configure{Target: &wire.Target{Ino: uint64(n.ino)}, Key: string(key), Settings: &wire.Settings{Memory: &yes}})
	}
	return n
}

func (n *node) apply(cmd *wire.Command) *wire.Answer {
	n.t.Helper()
	n.index++
	answers, err := n.state.Apply(n.index, 1, &wire.Entry{Time: n.now + n.index, Commands: []*wire.Command{cmd}})
	require.NoError(n.t, err)
	require.Zero(n.t, answers[0].Code, answers[0].Reason)
	return answers[0]
}

func (n *node) configure(c *wire.Configure) {
	n.apply(&wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: c}})
}

func (n *node) Now() uint64            { return n.now }
func (n *node) InMemory(at Place) bool { return n.state.InMemory(at.Ino, at.Key) }
func (n *node) Wake(at []Place)        { n.woken = append(n.woken, at...) }

func (n *node) Configure() func(*wire.Configure, func()) {
	return func(c *wire.Configure, then func()) {
		n.configure(c)
		then()
	}
}

func (n *node) Go(f func()) bool {
	n.owned.Go(f)
	return true
}

// do does what is asked, and all that comes of it.
func (n *node) do(r Request) (out Outcome) {
	r.Session, r.Ino = gearsfs.SessionID{Minted: 1, Salt: 1}, n.ino
	n.machine.Push(func() {
		out = n.machine.Do(&r)
		n.machine.Wake()
	})
	n.owned.Wait()
	return out
}

func (n *node) put(seq uint64, key gearsfs.Key, data string) *wire.Answer {
	n.t.Helper()
	out := n.do(Request{Keys: []gearsfs.Key{key}, Command: &wire.Command{Seq: seq, Op: &wire.Command_Put{Put: &wire.Put{
		Key: string(key), Records: []*wire.NewRecord{{Data: []byte(data)}},
	}}}})
	require.Zero(n.t, out.Answer.Code, out.Answer.Reason)
	return out.Answer
}

func take(seq uint64, lease bool, keys ...gearsfs.Key) Request {
	t := &wire.Take{Max: 1, Lease: lease}
	if lease {
		t.Tries = 2
	}
	return Request{Keys: keys, Command: &wire.Command{Seq: seq, Op: &wire.Command_Take{Take: t}}}
}

func (n *node) records(key gearsfs.Key) uint64 {
	st, _ := n.machine.State(Place{n.ino, key})
	return st.Left()
}

// What is asked for again is not done again, until the session has confirmed it.
func TestRetries(t *testing.T) {
	n := newNode(t, "k")
	first := n.put(1, "k", "a")
	again := n.put(1, "k", "a")
	require.Equal(t, first.LastSeq, again.LastSeq)
	require.EqualValues(t, 1, n.records("k"))
	require.Contains(t, n.woken, Place{n.ino, "k"})
	taken := n.do(take(2, false, "k")).Answer
	require.Zero(t, taken.Code, taken.Reason)
	require.Equal(t, "a", string(taken.Records[0].Data))
	require.Equal(t, taken.Records[0].Seq, n.do(take(2, false, "k")).Answer.Records[0].Seq)
	require.Equal(t, uint32(gearsfs.ErrEmpty.Code), n.do(take(3, false, "k")).Answer.Code)
	late := take(2, false, "k")
	late.Command.Confirmed = 3
	require.Equal(t, uint32(gearsfs.ErrEmpty.Code), n.do(late).Answer.Code)
}

// A take of streams of both kinds is the log's where a record is on disk, or may
// have been taken there before.
func TestTakeOfBothKinds(t *testing.T) {
	n := newNode(t, "k")
	both := func() Request { return take(7, false, "disk", "k") }
	require.Equal(t, uint32(gearsfs.ErrEmpty.Code), n.do(both()).Answer.Code)
	again := both()
	again.Retry = true
	n.put(1, "k", "a")
	require.Equal(t, []gearsfs.Key{"disk"}, n.do(again).Keys)
	again.Logged = true
	require.Equal(t, "a", string(n.do(again).Answer.Records[0].Data))
	n.apply(&wire.Command{Checked: true, Op: &wire.Command_Put{Put: &wire.Put{
		Target: &wire.Target{Ino: uint64(n.ino)}, Key: "disk", Records: []*wire.NewRecord{{Data: []byte("b")}},
	}}})
	next := both()
	next.Command.Seq = 8
	require.Equal(t, []gearsfs.Key{"disk"}, n.do(next).Keys)
}

// A record that comes back too often goes to the dead, which are in memory, too.
func TestDead(t *testing.T) {
	n := newNode(t, "k")
	n.put(1, "k", "a")
	for seq := uint64(2); seq < 6; seq += 2 {
		require.EqualValues(t, 1, n.records("k"))
		leased := n.do(take(seq, true, "k")).Answer.Records[0]
		back := n.do(Request{Keys: []gearsfs.Key{"k"}, Command: &wire.Command{Seq: seq + 1, Op: &wire.Command_Settle{Settle: &wire.Settle{
			Return: true, Receipts: []*wire.Receipt{{Ino: leased.Ino, Key: leased.Key, Pos: leased.Pos, Seq: leased.Seq, Fence: leased.Fence}},
		}}}})
		require.Zero(t, back.Answer.Code, back.Answer.Reason)
	}
	require.Zero(t, n.records("k"))
	require.EqualValues(t, 1, n.records("k.dead"))
}

// What was pushed for a stream that has left memory since is not done there.
func TestPutBehindTheLeaving(t *testing.T) {
	n := newNode(t, "k")
	require.True(t, n.machine.Leave(Place{n.ino, "k"}))
	no, asked := false, 0
	request := Request{Keys: []gearsfs.Key{"k"}, Again: func() { asked++ }, Command: &wire.Command{Seq: 1, Op: &wire.Command_Put{Put: &wire.Put{
		Key: "k", Records: []*wire.NewRecord{{Data: []byte("a")}},
	}}}}
	require.True(t, n.do(request).Held)
	n.configure(&wire.Configure{Target: &wire.Target{Ino: uint64(n.ino)}, Key: "k", Settings: &wire.Settings{Memory: &no}})
	n.machine.Left(Place{n.ino, "k"})
	require.Equal(t, 1, asked)
	require.Equal(t, uint32(gearsfs.ErrUnsupported.Code), n.do(request).Answer.Code)
	require.Zero(t, n.records("k"))
}

// The answers of a session that ends again and again are kept until the last end is
// long ago, however long ago the first is.
func TestAnswersOfASessionThatEndsOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "k")
		n.put(1, "k", "a")
		taken := n.do(take(2, false, "k")).Answer
		end := func() {
			n.machine.End(gearsfs.SessionID{Minted: 1, Salt: 1}, false, func() bool { return false })
			synctest.Wait()
		}
		end()
		bubble.Pass(gearsfs.SessionTTL - time.Second)
		require.Equal(t, taken.Records[0].Seq, n.do(take(2, false, "k")).Answer.Records[0].Seq)
		end()
		bubble.Pass(2 * time.Second)
		again := n.do(take(2, false, "k")).Answer
		require.Zero(t, again.Code, "it was away when its first end was SessionTTL ago")
		require.Equal(t, taken.Records[0].Seq, again.Records[0].Seq)
		bubble.Pass(gearsfs.SessionTTL)
		require.Equal(t, uint32(gearsfs.ErrEmpty.Code), n.do(take(2, false, "k")).Answer.Code)
	})
}
