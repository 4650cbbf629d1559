package dgm_test

import (
	"context"
	"math"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// speaker is a client that says each request itself.
type speaker struct {
	t    *testing.T
	conn *transport.Conn
	id   *wire.Welcome
}

func (s *speaker) ask(req *wire.Request) *wire.Response {
	s.t.Helper()
	body, err := req.MarshalVT()
	require.NoError(s.t, err)
	answer, err := s.conn.Call(s.t.Context(), body)
	require.NoError(s.t, err)
	resp := new(wire.Response)
	require.NoError(s.t, resp.UnmarshalVT(answer))
	return resp
}

// speak runs do with a connection to the volume on data, which counts as full
// where reserve is large. id is a session to go on with, nil for a new one.
func speak(t *testing.T, dir string, reserve uint64, id *wire.Welcome, do func(s *speaker)) *wire.Welcome {
	t.Helper()
	data, err := persist.Open(filepath.Join(dir, "data"), persist.Options{Create: true, Name: "test"})
	require.NoError(t, err)
	vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{Data: data, Root: gearsfs.Root, ReserveBytes: reserve,
		Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	require.NoError(t, err)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	var served sync.WaitGroup
	served.Go(func() {
		if err := vol.Serve(ctx, l, nil); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	s := newSpeaker(t, ctx, path, id)
	do(s)
	require.NoError(t, s.conn.Close())
	stop()
	served.Wait()
	require.NoError(t, vol.Close())
	return s.id
}

// newSpeaker connects a client over a unix socket. id is a session to go on with, nil
// for a new one.
func newSpeaker(t *testing.T, ctx context.Context, path string, id *wire.Welcome) *speaker {
	t.Helper()
	addr, err := transport.ParseAddr("unix:" + path)
	require.NoError(t, err)
	s := &speaker{t: t}
	s.conn, err = transport.Dial(ctx, addr, transport.Config{})
	require.NoError(t, err)
	hello := &wire.Hello{Process: "speaker"}
	if id != nil {
		hello.SessionMinted, hello.SessionSalt = id.SessionMinted, id.SessionSalt
	}
	s.id = s.ask(&wire.Request{Kind: &wire.Request_Hello{Hello: hello}}).Welcome
	require.NotNil(t, s.id)
	return s
}

func (s *speaker) request(ch *wire.Change) *wire.Request {
	return &wire.Request{
		SessionMinted: s.id.SessionMinted, SessionSalt: s.id.SessionSalt, Kind: &wire.Request_Change{Change: ch},
	}
}

func (s *speaker) change(ch *wire.Change) *wire.Answer {
	s.t.Helper()
	return s.ask(s.request(ch)).Answer
}

// put puts a record into a file, as the session's command seq.
func (s *speaker) put(seq uint64, path string, again bool) *wire.Answer {
	s.t.Helper()
	return s.change(&wire.Change{Path: path, Retry: again, Command: &wire.Command{Seq: seq, Op: &wire.Command_Put{
		Put: &wire.Put{Key: "q", Records: []*wire.NewRecord{{Data: []byte("x")}}}}}})
}

// TestAgainWhatIsRefused: what is sent again is not refused for a reason that the
// first time had not, because its sender would take it for not done.
func TestAgainWhatIsRefused(t *testing.T) {
	dir := t.TempDir()
	var first, elsewhere *wire.Answer
	id := speak(t, dir, 1, nil, func(s *speaker) {
		first = s.put(1, "/file", false)
		require.Zero(t, first.Code)
		made := s.change(&wire.Change{Command: &wire.Command{Seq: 2, Op: &wire.Command_Make{
			Make: &wire.Make{Dir: uint64(gearsfs.RootIno), Name: "dir", Mode: unix.S_IFDIR | 0o755}}}})
		require.Zero(t, made.Code)
		elsewhere = s.put(3, "/dir/file", false)
		require.Zero(t, elsewhere.Code)
		moved := s.change(&wire.Change{Command: &wire.Command{Seq: 4, Op: &wire.Command_Rename{
			Rename: &wire.Rename{Dir: uint64(gearsfs.RootIno), Name: "dir", NewDir: uint64(gearsfs.RootIno), NewName: "moved"}}}})
		require.Zero(t, moved.Code)
		require.EqualExportedValues(t, elsewhere, s.put(3, "/dir/file", true), "the directory is gone")
		require.EqualValues(t, gearsfs.ErrNotFound.Code, s.put(5, "/dir/file", true).Code)
	})
	speak(t, dir, math.MaxUint64, id, func(s *speaker) { // the disk is full
		require.EqualExportedValues(t, first, s.put(1, "/file", true))
		require.EqualValues(t, gearsfs.ErrNoSpace.Code, s.put(6, "/file", true).Code)
		require.EqualValues(t, gearsfs.ErrNoSpace.Code, s.put(7, "/file", false).Code)
	})
	speak(t, dir, 1, id, func(s *speaker) {
		require.Equal(t, first.LastSeq+1, s.put(8, "/file", false).FirstSeq, "none of that was put")
	})
}

// A put that a later one of its session has passed, since it does not wait for room,
// is refused for that however often it is sent.
func TestAgainWhatWasPassed(t *testing.T) {
	speak(t, t.TempDir(), 1, nil, func(s *speaker) {
		request := func(seq uint64, wait, again bool, cmd *wire.Command) *wire.Request {
			cmd.Seq = seq
			return s.request(&wire.Change{Path: "/file", NoWait: !wait, Retry: again, Command: cmd})
		}
		put := func(seq uint64, wait, again bool, n int) *wire.Request {
			op := &wire.Put{Key: "q"}
			for range n {
				op.Records = append(op.Records, &wire.NewRecord{Data: []byte("x")})
			}
			return request(seq, wait, again, &wire.Command{Op: &wire.Command_Put{Put: op}})
		}
		code := func(req *wire.Request) uint32 { return s.ask(req).Answer.Code }
		full := uint32(gearsfs.ErrFull.Code)
		take := func(seq uint64, want int) {
			t.Helper()
			a := s.ask(request(seq, true, false, &wire.Command{Op: &wire.Command_Take{Take: &wire.Take{Keys: []string{"q"}, Max: 9}}})).Answer
			require.Len(t, a.Records, want)
		}
		require.Zero(t, code(put(1, true, false, 1)))
		require.Zero(t, code(request(2, true, false, &wire.Command{Op: &wire.Command_Configure{Configure: &wire.Configure{
			Key: "q", SetLimits: true, LimitRecords: 2}}})))

		require.Equal(t, full, code(put(3, false, false, 2)), "by the state")
		require.Zero(t, code(put(4, true, false, 1)))
		take(5, 2)
		require.Equal(t, full, code(put(3, true, true, 2)))
		require.Zero(t, code(put(6, true, false, 1)))

		waits, err := put(7, true, false, 2).MarshalVT()
		require.NoError(t, err)
		s.conn.Start(waits, func([]byte, error) {})
		require.Equal(t, full, code(put(8, false, false, 1)))
		require.Equal(t, full, code(put(9, false, false, 1)), "by the node, since one waits")
		take(10, 1)
		take(11, 2)
		require.Zero(t, code(put(12, true, false, 1)))
		require.Equal(t, full, code(put(8, true, true, 1)))
		require.Equal(t, full, code(put(9, true, true, 1)))
	})
}
