package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// How a snapshot is fetched.
const (
	pieceBytes     = 512 << 10
	piecesInFlight = 8
	pullTries      = 3                // of a file that arrives damaged
	pullPatience   = 10 * time.Minute // without a byte
	pullTellEvery  = 5 * time.Second  // in the log
	installLook    = 100 * time.Millisecond
	staleAfter     = 2 * time.Second // in a later term, for raft to look at it
)

// pull is the fetching of one snapshot.
type pull struct {
	from      gearsfs.MemberID
	snap      *wire.Snapshot // as it was offered first
	stop      context.CancelFunc
	over      chan struct{} // closed when it has ended
	total     uint64
	have      atomic.Uint64                    // bytes of total that are on disk
	handed    atomic.Pointer[persist.Incoming] // all of it: raft may have it installed
	installed chan struct{}                    // closed by Install

	// Guarded by snapshots.mu: where the leader offers it once more, as it must
	// in a later term, the later message counts.
	message []byte
	term    uint64 // the leader's when it sent the message
}

// offered is told of a snapshot that another member has for this node.
func (s *snapshots) offered(from gearsfs.MemberID, snap *wire.Snapshot) {
	s.mu.Lock()
	old := s.pull
	switch {
	case s.closed:
	case old == nil:
		s.beginLocked(from, snap, nil)
	case old.handed.Load() != nil || snap.LeaderTerm < old.term:
		// If it is still needed it will be offered again.
	case old.snap.Id != snap.Id:
		s.beginLocked(from, snap, old)
	default:
		old.message, old.term = snap.Message, snap.LeaderTerm
	}
	s.mu.Unlock()
	s.cfg.mesh.say(from, &wire.Notice{SnapshotId: snap.Id})
}

// beginLocked fetches a snapshot, instead of old where that is not nil.
func (s *snapshots) beginLocked(from gearsfs.MemberID, snap *wire.Snapshot, old *pull) {
	p := &pull{
		from: from, snap: snap, message: snap.Message, term: snap.LeaderTerm,
		over: make(chan struct{}), installed: make(chan struct{}),
	}
	for _, f := range snap.Files {
		p.total += f.Bytes
	}
	ctx, stop := context.WithCancel(s.ctx)
	p.stop = stop
	s.pull = p
	s.owned.Go(func() {
		defer stop()
		if old != nil {
			old.stop()
			<-old.over
		}
		s.runPull(ctx, p)
	})
}

// runPull fetches a snapshot and answers the offer.
func (s *snapshots) runPull(ctx context.Context, p *pull) {
	err := s.obtain(ctx, p)
	s.mu.Lock()
	if s.pull == p {
		s.pull = nil
	}
	s.mu.Unlock()
	close(p.over)
	switch {
	case err == nil:
		s.cfg.mesh.say(p.from, &wire.Notice{SnapshotId: p.snap.Id, Taken: p.snap.Index})
	case ctx.Err() == nil: // else it was replaced, or the node ends
		s.cfg.log.Warn("a snapshot can't be fetched", "from", s.nameOf(p.from), "error", err)
		s.cfg.mesh.say(p.from, &wire.Notice{SnapshotId: p.snap.Id, Refused: err.Error()})
	}
}

func (s *snapshots) nameOf(id gearsfs.MemberID) string {
	if l := s.cfg.mesh.link(id); l != nil {
		return l.who().Name
	}
	return "member " + id.Hex()
}

// obtain returns when the state is the snapshot's or later.
func (s *snapshots) obtain(ctx context.Context, p *pull) error {
	if s.cfg.applied() >= p.snap.Index {
		s.group().Receive(p.snap.Message) // raft says so to the leader
		return nil
	}
	files := make([]persist.SnapshotFile, len(p.snap.Files))
	for i, f := range p.snap.Files {
		files[i] = persist.SnapshotFile{Name: f.Name, Bytes: f.Bytes, Sum: f.Crc32C}
	}
	in, err := s.cfg.data.Receive(p.snap.Id, files)
	if err != nil {
		return err
	}
	if err := s.fetchWhole(ctx, p, in, files); err != nil {
		return err
	}
	return s.handOver(ctx, p, in)
}

// fetchWhole returns when all files are there and right.
func (s *snapshots) fetchWhole(ctx context.Context, p *pull, in *persist.Incoming, files []persist.SnapshotFile) error {
	for try := 1; ; try++ {
		if err := s.fetchFiles(ctx, p, in, files); err != nil {
			return err
		}
		err := in.Verify()
		if err == nil {
			err = s.sameVolume(in, p.snap)
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, gearsfs.ErrDamaged) || try == pullTries:
			return errors.Join(err, in.Discard())
		}
		s.cfg.log.Warn("a snapshot has arrived damaged: the file is fetched again", "from", s.nameOf(p.from), "error", err)
	}
}

// handOver gives raft the message that goes with the files, and waits until
// raft has had them installed or has no use for them.
func (s *snapshots) handOver(ctx context.Context, p *pull, in *persist.Incoming) error {
	s.mu.Lock()
	message, term := p.message, p.term
	p.handed.Store(in) // nothing replaces it from now on
	replaced := s.pull != p
	s.mu.Unlock()
	if replaced {
		return errReplaced
	}
	s.group().Receive(message)
	ticker := time.NewTicker(installLook)
	defer ticker.Stop()
	var stale time.Time
	for {
		select {
		case <-p.installed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		switch {
		case s.cfg.applied() >= p.snap.Index:
			return nil // by the log, or as it was before the message was sent again
		case s.group().Status().Term <= term:
		case stale.IsZero():
			stale = time.Now()
		case time.Since(stale) > staleAfter:
			return s.giveUp(ctx, p)
		}
	}
}

// giveUp ends the waiting for raft, unless it has the snapshot installed after all:
// where the disk is slow it may not have come to the message yet, and once it has
// taken it the files must be there.
func (s *snapshots) giveUp(ctx context.Context, p *pull) error {
	if err := s.group().Heard(ctx); err != nil {
		return err
	}
	if s.cfg.applied() >= p.snap.Index {
		return nil
	}
	return gearsfs.ErrNotLeader.Because("who sent it does not lead any more")
}

// fetchFiles returns when all files have their size. A lost connection is made
// again.
func (s *snapshots) fetchFiles(ctx context.Context, p *pull, in *persist.Incoming, files []persist.SnapshotFile) error {
	told, moved, pause := time.Now(), time.Now(), linkPauseMin
	had := s.count(p, in, files)
	s.cfg.log.Info("fetching a snapshot", "from", s.nameOf(p.from), "index", p.snap.Index, "have", had, "bytes", p.total)
	arrived := func() {
		moved = time.Now()
		if moved.Sub(told) >= pullTellEvery {
			told = moved
			s.cfg.log.Info("fetching a snapshot", "from", s.nameOf(p.from), "have", p.have.Load(), "bytes", p.total)
		}
	}
	for {
		final, err := s.fetchOver(ctx, p, in, files, arrived)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case final:
			return err
		case time.Since(moved) > pullPatience:
			return gearsfs.ErrNoNode.Because("nothing came for %v: %v", pullPatience, err)
		}
		if have := s.count(p, in, files); have != had {
			had, pause = have, linkPauseMin
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, linkPauseMax)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *snapshots) count(p *pull, in *persist.Incoming, files []persist.SnapshotFile) (have uint64) {
	for _, f := range files {
		have += in.Have(f.Name)
	}
	p.have.Store(have)
	return have
}

// piece is a part of a file that is on its way.
type piece struct {
	want *wire.Fetch
	got  chan pieceOutcome // of capacity 1
}

type pieceOutcome struct {
	data []byte
	err  error
}

// fetchOver fetches what is missing over one connection, several pieces at
// once, and writes them in order. final says that another connection would not
// help.
func (s *snapshots) fetchOver(ctx context.Context, p *pull, in *persist.Incoming, files []persist.SnapshotFile, arrived func()) (final bool, err error) {
	l := s.cfg.mesh.link(p.from)
	if l == nil {
		return true, gearsfs.ErrNotMember.Because("who has the snapshot is not a member")
	}
	conn, err := s.cfg.mesh.dial(ctx, l.who(), true)
	if err != nil {
		return false, err
	}
	defer func() {
		cut, cancel := context.WithCancel(context.Background())
		cancel()
		conn.Shutdown(cut) //nolint:errcheck // nothing is left that matters
	}()
	var flying []piece
	next := missing(p.snap.Id, in, files)
	for {
		for len(flying) < piecesInFlight {
			want := next()
			if want == nil {
				break
			}
			flying = append(flying, askPiece(conn, want))
		}
		if len(flying) == 0 {
			return false, nil
		}
		first := flying[0]
		flying = flying[1:]
		select {
		case o := <-first.got:
			if o.err != nil {
				return errors.Is(o.err, gearsfs.ErrNotFound), o.err
			}
			if err := in.Write(first.want.File, first.want.Offset, o.data); err != nil {
				return true, err
			}
			p.have.Add(uint64(len(o.data)))
			arrived()
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// missing yields the pieces that are not there, in order, then nil.
func missing(id string, in *persist.Incoming, files []persist.SnapshotFile) func() *wire.Fetch {
	i, off := -1, uint64(0)
	return func() *wire.Fetch {
		for i < 0 || off >= files[i].Bytes {
			if i++; i >= len(files) {
				i = len(files) - 1
				return nil
			}
			off = in.Have(files[i].Name)
		}
		want := &wire.Fetch{Id: id, File: files[i].Name, Offset: off, Length: uint32(min(pieceBytes, files[i].Bytes-off))}
		off += uint64(want.Length)
		return want
	}
}

// askPiece begins to fetch a piece.
func askPiece(conn *transport.Conn, want *wire.Fetch) piece {
	got := make(chan pieceOutcome, 1)
	body, err := (&wire.Request{Kind: &wire.Request_Fetch{Fetch: want}}).MarshalVT()
	if err != nil {
		got <- pieceOutcome{err: err}
		return piece{want, got}
	}
	conn.Start(body, func(body []byte, err error) {
		resp := new(wire.Response)
		if err == nil {
			err = resp.UnmarshalVTUnsafe(body)
		}
		if err == nil {
			err = answer.ErrorOf(resp)
		}
		if err == nil && len(resp.Data) != int(want.Length) {
			err = gearsfs.ErrProtocol.Because("a piece of %d bytes instead of %d", len(resp.Data), want.Length)
		}
		got <- pieceOutcome{resp.Data, err}
	})
	return piece{want, got}
}

// warnings say what is being fetched.
func (s *snapshots) warnings() []string {
	s.mu.Lock()
	p := s.pull
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return []string{fmt.Sprintf("fetching a snapshot from %s: %d of %d MiB", s.nameOf(p.from), p.have.Load()>>20, p.total>>20)}
}
