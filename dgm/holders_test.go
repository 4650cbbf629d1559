package dgm

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// stage is a volume in a bubble, with one file, and a client who says hello, and
// more, only when the test does: while it is away others are named as if it might
// have open what they unlink.
type stage struct {
	t    *testing.T
	vol  *Volume
	main *Local
	file gearsfs.Ino

	in *inside
	id gearsfs.SessionID
}

func onStage(t *testing.T, test func(s *stage)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		data, err := persist.Open(dir, persist.Options{Create: true, Name: "test"})
		require.NoError(t, err)
		vol, err := OpenVolume(t.Context(), VolumeConfig{
			Data: data, Root: gearsfs.Root, Fatal: func(err error) { t.Errorf("fatal: %v", err) },
		})
		require.NoError(t, err)
		main, err := vol.Local(Client{Caller: gearsfs.Root})
		require.NoError(t, err)
		attr, err := main.Make(t.Context(), gearsfs.RootIno, "f", Make{Mode: 0o100644})
		require.NoError(t, err)
		_, err = main.Open(t.Context(), attr.Ino)
		require.NoError(t, err)
		s := &stage{t: t, vol: vol, main: main, file: attr.Ino}
		require.NoError(t, s.hello())
		require.NoError(t, s.ask(&wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{Command: &wire.Command{
			Seq: 1, Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}},
		}}}}), "the state knows it")
		defer func() {
			require.NoError(t, main.Close())
			require.NoError(t, vol.Close())
		}()
		test(s)
	})
}

// ask makes a request of the client's.
func (s *stage) ask(req *wire.Request) error {
	req.SessionMinted, req.SessionSalt = uint64(s.id.Minted), s.id.Salt
	out := make(chan *wire.Response, 1)
	s.in.start(req, func(resp *wire.Response) { out <- resp })
	resp := <-out
	if w := resp.Welcome; w != nil {
		s.id = sessionID(w.SessionMinted, w.SessionSalt)
	}
	return errorOf(resp)
}

// hello has the client come, or come back, with what it has open, once each.
func (s *stage) hello(opens ...gearsfs.Ino) error {
	in, err := s.vol.inside(gearsfs.Root)
	if err != nil {
		return err
	}
	s.in = in
	h := &wire.Hello{SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt}
	for _, ino := range opens {
		h.Opens = append(h.Opens, uint64(ino), 1)
	}
	return s.ask(&wire.Request{Kind: &wire.Request_Hello{Hello: h}})
}

// flip ends the tenure and begins the next, as far as that can begin, and has
// the other client come back, not this one.
func (s *stage) flip() {
	s.vol.Depose()
	s.vol.Reinstate()
	synctest.Wait()
}

// holdReplica keeps the replica from applying anything until what it returns is
// called.
func (s *stage) holdReplica() (goOn func()) {
	held := make(chan struct{})
	s.vol.group.Propose(&replica.Proposal{
		Command: &wire.Command{Checked: true, Op: &wire.Command_Tick{Tick: &wire.Tick{}}},
		Done:    func(*wire.Answer, error) { <-held },
	})
	synctest.Wait()
	return func() {
		close(held)
		synctest.Wait()
	}
}

// requireGone says that nobody has the file open who has not.
func (s *stage) requireGone() {
	s.t.Helper()
	require.NoError(s.t, s.main.Release(s.t.Context(), s.file))
	synctest.Wait()
	held, err := s.vol.machine.Held()
	require.NoError(s.t, err)
	require.Empty(s.t, held, "who holds what; this client is %v", s.id)
	_, err = s.main.GetAttr(s.t.Context(), s.file)
	require.ErrorIs(s.t, err, gearsfs.ErrStale)
}

// An unlink that was on its way when its tenure ended, and is applied later, has
// named one who was away then. The next tenure has to know when that one is back.
func TestUnlinkOfTheLastTenure(t *testing.T) {
	onStage(t, func(s *stage) {
		s.flip() // and the client is away
		goOn := s.holdReplica()
		unlinked := make(chan error, 1)
		go func() { unlinked <- s.main.Unlink(s.t.Context(), gearsfs.RootIno, "f") }()
		synctest.Wait()
		s.flip()
		early := s.vol.Serves()
		if early { // it learns of nothing that it is to let go
			back := make(chan error, 1)
			go func() { back <- s.hello() }()
			synctest.Wait()
			goOn()
			require.NoError(t, <-back)
		} else {
			goOn()
			require.NoError(t, s.hello())
		}
		require.NoError(t, <-unlinked)
		s.requireGone()
	})
}

// A session that ends while an unlink that names it is on its way ends behind it
// in the log too: else nobody would let go for it.
func TestEndBehindAnUnlink(t *testing.T) {
	onStage(t, func(s *stage) {
		require.NoError(t, s.hello(s.file))
		ten := s.vol.tenure.Load()
		named, sessions := ten.holders(s.file)
		require.Len(t, named, 4, "both clients")
		s.in.close() // here who unlinks is kept from going on
		synctest.Wait()
		done := make(chan error, 1)
		ten.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Unlink{Unlink: &wire.Unlink{
			Dir: uint64(gearsfs.RootIno), Name: "f", OpenIno: uint64(s.file), Holders: named,
		}}}, func(answer *wire.Answer, err error) {
			ten.unlinked(s.file, sessions)
			if err == nil {
				err = answerError(answer)
			}
			done <- err
		})
		require.NoError(t, <-done)
		synctest.Wait()
		s.requireGone()
	})
}

// What comes late from a connection that the client has given up opens nothing and
// releases nothing: on the next one it has said what it has open.
func TestLateOpensCountNot(t *testing.T) {
	onStage(t, func(s *stage) {
		ten := s.vol.tenure.Load()
		late := s.in.peer
		client := late.session(s.id)
		require.NoError(t, s.hello(s.file))
		for _, q := range []*wire.Query{
			{Op: &wire.Query_Open{Open: uint64(s.file)}},
			{Op: &wire.Query_Open{Open: uint64(s.file)}, Made: true},
			{Op: &wire.Query_Release{Release: uint64(s.file)}},
		} {
			answer := make(chan *wire.Response, 1)
			ten.start(late, client, &wire.Request{Kind: &wire.Request_Query{Query: q}}, func(resp *wire.Response) { answer <- resp })
			require.Error(t, errorOf(<-answer))
		}
		ten.unopen(client, client.epoch.Load()-1, s.file) // of an open that failed, asked for there
		require.NoError(t, s.main.Unlink(s.t.Context(), gearsfs.RootIno, "f"))
		require.NoError(t, s.main.Release(s.t.Context(), s.file))
		synctest.Wait()
		_, err := s.main.GetAttr(s.t.Context(), s.file)
		require.NoError(t, err, "the client has it open")
		require.NoError(t, s.ask(&wire.Request{Kind: &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_Release{Release: uint64(s.file)}}}}))
		synctest.Wait()
		held, err := s.vol.machine.Held()
		require.NoError(t, err)
		require.Empty(t, held)
	})
}

// A client that came to a tenure that ends before it says hello is not taken into the
// next one: its connection ends with the first, and its session would end with that.
func TestHelloToTheNextTenure(t *testing.T) {
	onStage(t, func(s *stage) {
		in, err := s.vol.inside(gearsfs.Root)
		require.NoError(t, err)
		s.flip()
		s.in = in
		h := &wire.Hello{SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt}
		require.ErrorIs(t, s.ask(&wire.Request{Kind: &wire.Request_Hello{Hello: h}}), gearsfs.ErrNotLeader)
		in.close()
		require.NoError(t, s.hello())
	})
}
