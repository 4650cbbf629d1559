package dgm

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// someRequests are requests of each kind that a client sends.
func someRequests(f testing.TB) [][]byte {
	target := &wire.Target{Dir: uint64(gearsfs.RootIno), Name: "f"}
	put := &wire.Put{Target: target, Key: "q", Records: []*wire.NewRecord{{Data: []byte("x"), Type: "t", Id: "1"}}, Delay: 5}
	take := &wire.Take{Keys: []string{"q"}, Max: 1, Lease: true, LeaseFor: 7, ByReceipt: true, Tries: 2}
	change := func(op *wire.Command, path string) *wire.Request {
		op.Seq, op.Confirmed = 3, 3
		return &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{Path: path, NoWait: true, Command: op}}}
	}
	query := func(q *wire.Query) *wire.Request { return &wire.Request{Kind: &wire.Request_Query{Query: q}} }
	requests := []*wire.Request{
		change(&wire.Command{Op: &wire.Command_Put{Put: put}}, ""),
		change(&wire.Command{Op: &wire.Command_Take{Take: take}}, "/f"),
		change(&wire.Command{Op: &wire.Command_Update{Update: &wire.Update{Key: "q", Record: &wire.NewRecord{}}}}, "/f"),
		change(&wire.Command{Op: &wire.Command_Settle{Settle: &wire.Settle{Receipts: []*wire.Receipt{{Ino: 2, Key: "q", Seq: 1, Fence: 1}}, Return: true}}}, ""),
		change(&wire.Command{Op: &wire.Command_Move{Move: &wire.Move{Target: target, Key: "q", To: "r"}}}, ""),
		change(&wire.Command{Op: &wire.Command_Configure{Configure: &wire.Configure{Target: target, Key: "q", Settings: &wire.Settings{Type: new("t")}}}}, ""),
		{Kind: &wire.Request_Change{Change: &wire.Change{Paths: []string{"/f", "/g"}, NoWait: true, Command: &wire.Command{
			Op: &wire.Command_Transact{Transact: &wire.Transact{Steps: []*wire.Step{
				{Op: &wire.Step_Take{Take: take}}, {Op: &wire.Step_Put{Put: put}}}}}}}}},
		{Kind: &wire.Request_Change{Change: &wire.Change{Paths: []string{"/f", "/g"}, Command: &wire.Command{
			Op: &wire.Command_CopyFile{CopyFile: &wire.CopyFile{}}}}}},
		query(&wire.Query{Op: &wire.Query_Peek{Peek: &wire.Peek{Target: target, Key: "q", Max: 1}}}),
		query(&wire.Query{Op: &wire.Query_Near{Near: &wire.Near{Target: target, Keys: []string{"q"}}}}),
		{Kind: &wire.Request_Node{Node: &wire.NodeOp{Op: &wire.NodeOp_Nodes{Nodes: true}}}},
		{Kind: &wire.Request_Goodbye{Goodbye: &wire.Goodbye{}}},
	}
	var all [][]byte
	for _, r := range requests {
		b, err := r.MarshalVT()
		require.NoError(f, err)
		all = append(all, b)
	}
	return all
}

// requireDecoded checks that decodeRequest yields what plain was decoded from, or
// something that is refused alike.
func requireDecoded(t testing.TB, plain *wire.Request, b []byte) {
	t.Helper()
	req, err := decodeRequest(b)
	require.NoError(t, err)
	op := plain.GetChange().GetCommand().GetOp()
	_, change := plain.Kind.(*wire.Request_Change)
	if put, ok := op.(*wire.Command_Put); plain.Kind == nil || change && op == nil || ok && put.Put.Key == "" {
		require.Nil(t, req.GetChange().GetCommand().GetOp())
		return
	}
	require.True(t, proto.Equal(plain, req), "%v decoded as %v", plain, req)
}

// A request that is decoded in one piece is the request that was sent, also where
// it lacks what the piece has room for, or is unknown.
func TestDecodeRequest(t *testing.T) {
	bodies := someRequests(t)
	for _, r := range []*wire.Request{
		{}, {Remote: "b"}, {Kind: &wire.Request_Hello{Hello: &wire.Hello{}}}, {Kind: &wire.Request_Change{Change: &wire.Change{}}},
		{Kind: &wire.Request_Change{Change: &wire.Change{Command: &wire.Command{Seq: 7}}}},
		{Kind: &wire.Request_Change{Change: &wire.Change{Path: "/f", Command: &wire.Command{Op: &wire.Command_Put{Put: &wire.Put{}}}}}},
		{Kind: &wire.Request_Change{Change: &wire.Change{Path: "/f", Command: &wire.Command{Op: &wire.Command_Put{Put: &wire.Put{
			Key: "q", Records: []*wire.NewRecord{{Data: []byte("x")}, {}, {Type: "t"}}}}}}}},
	} {
		b, err := r.MarshalVT()
		require.NoError(t, err)
		bodies = append(bodies, b)
	}
	var twice []byte
	for _, b := range bodies {
		twice = append(twice, b...) // of what is there more than once the last counts
	}
	unknown := []byte{0xfa, 0x3f, 0} // an empty message, number 1023
	for _, b := range append(bodies, twice, unknown, append(unknown, bodies[0]...)) {
		plain := new(wire.Request)
		require.NoError(t, plain.UnmarshalVT(b))
		requireDecoded(t, plain, b)
	}
}

// FuzzRequest: any bytes that a client sends are answered, once.
func FuzzRequest(f *testing.F) {
	for _, b := range someRequests(f) {
		f.Add(b)
	}
	data, err := persist.Open("/data", persist.Options{FS: vfs.NewMem(), Create: true, Name: "n", CacheBytes: 1 << 20, MemTableBytes: 1 << 20, SegmentBytes: 64 << 10})
	require.NoError(f, err)
	blocks := blocktest.NewMemory(nil)
	require.NoError(f, blocks.MakeDir("/data"))
	v, err := OpenVolume(context.Background(), VolumeConfig{Data: data, BlockFS: blocks, Root: gearsfs.Root, Fatal: func(err error) { f.Error(err) }})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, v.Close()) })
	<-v.Tenure().t.begun
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(wire.Request)
		if req.UnmarshalVT(b) != nil {
			return
		}
		requireDecoded(t, req, b)
		if node := req.GetNode(); node.GetRemove() != "" || node.GetTransfer() != "" || node.GetVerify() {
			return // they are not about bytes
		}
		in, err := v.inside(gearsfs.Root)
		require.NoError(t, err)
		defer in.close()
		ask := func(req *wire.Request) *wire.Response {
			answered := make(chan *wire.Response, 2)
			if c := in.start(req, func(resp *wire.Response) { answered <- resp }); c != nil {
				c.cancel(gearsfs.ErrCancelled)
			}
			select {
			case resp := <-answered:
				return resp
			case <-time.After(20 * time.Second):
				t.Fatalf("no answer to %v", req)
			}
			return nil
		}
		welcome := ask(&wire.Request{Kind: &wire.Request_Hello{Hello: &wire.Hello{}}})
		require.NoError(t, errorOf(welcome))
		if _, hello := req.Kind.(*wire.Request_Hello); !hello {
			req.SessionMinted, req.SessionSalt = welcome.Welcome.SessionMinted, welcome.Welcome.SessionSalt
		}
		_, err = ask(req).MarshalVT()
		require.NoError(t, err)
	})
}

// saying is a volume that answers everything alike.
type saying struct{ body []byte }

func (s saying) call(context.Context, *wire.Request) (*wire.Response, error) {
	return outcome(remoteOutcome{resp: received(s.body, nil)})
}

// FuzzResponse: any bytes that a node answers are a result or an error.
func FuzzResponse(f *testing.F) {
	record := &wire.TakenRecord{Ino: 2, Key: "q", Pos: 1, Seq: 2, Data: []byte("x"), Fence: 3, Deadline: 4, Deliveries: 1}
	for _, r := range []*wire.Response{
		{}, {Answer: &wire.Answer{Ino: 2, FirstSeq: 1, LastSeq: 2, Count: 3, Records: []*wire.TakenRecord{record}}},
		{Answer: &wire.Answer{Steps: []*wire.Answer{{Records: []*wire.TakenRecord{record}}, {FirstSeq: 1}}}},
		{Answer: &wire.Answer{Code: uint32(gearsfs.ErrUnmet.Code), Reason: "no", FailedStep: 2}},
		{Streams: []*wire.Stream{{}}, Nodes: []*wire.NodeInfo{{}}, Names: []string{"a"}},
	} {
		b, err := r.MarshalVT()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { askAll(t.Context(), api{cluster{saying{b}}}) })
}

// askAll asks for everything; what comes of it does not matter.
//
//nolint:errcheck // see above
func askAll(ctx context.Context, a api) {
	at, seq := gearsfs.At("/f"), gearsfs.Seq(1)
	keys := []gearsfs.Key{"q"}
	take := Take{File: at, Keys: keys, Max: 2, Lease: true, LeaseFor: time.Second}
	a.Put(ctx, Put{File: at, Key: "q"})
	a.Take(ctx, take)
	a.Peek(ctx, Peek{File: at, Key: "q"})
	a.Settle(ctx, Settle{Receipts: []gearsfs.Receipt{{Ino: 2, Key: "q"}}})
	a.Update(ctx, Update{File: at, Key: "q", IfSeq: &seq})
	a.Transact(ctx, Transact{Steps: []Step{{Take: &take}, {Put: &Put{File: at, Key: "q"}}}})
	a.Configure(ctx, at, "q", StreamChange{Clear: true})
	a.CopyFile(ctx, at, gearsfs.At("/g"))
	a.ListStreams(ctx, at, "", 9)
	a.Stream(ctx, at, "q")
	a.Near(ctx, at, keys)

	a.Lookup(ctx, 1, "f")
	a.Resolve(ctx, "/f", true)
	a.GetAttr(ctx, 2)
	a.SetAttr(ctx, 2, SetAttr{})
	a.Make(ctx, 1, "f", Make{})
	a.Link(ctx, 2, 1, "g")
	a.Readlink(ctx, 2)
	a.ReadDir(ctx, 1, "", 9)
	a.Parent(ctx, 2)
	a.GetXattr(ctx, 2, "user.a")
	a.ListXattr(ctx, 2)
	a.StatFS(ctx, 1)
	a.SetQuota(ctx, 1, SetQuota{})
	a.Quota(ctx, 1)

	a.Open(ctx, 2)
	a.Read(ctx, 2, 0, 9, nil)
	a.Write(ctx, 2, 0, []byte("x"))
	a.Append(ctx, 2, []byte("x"))
	a.Seek(ctx, 2, 0, false)

	a.Status(ctx)
	a.Waits(ctx)
	a.Remotes(ctx)
	a.Nodes(ctx)
}
