package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// How a snapshot is offered and kept.
const (
	offerEvery    = time.Second      // repeated while nothing is heard
	offerPatience = time.Minute      // without a word from the member
	snapshotIdle  = 10 * time.Minute // kept for whoever may come back for it
	loansMax      = 256              // pieces that are asked for and not sent yet
)

// snapshotsConfig is what snapshots know of their node.
type snapshotsConfig struct {
	data *persist.Data
	mesh *Mesh
	log  *slog.Logger
	pace *pace
	// applied is the index of the last entry in the state; replace has the state
	// machine go on with what swap brings, on the goroutine that applies.
	applied func() uint64
	replace func(swap func() error) error
}

// snapshots carries the state of the volume to members that are too far behind
// for the log.
//
//	leader                              member
//	Make   checkpoint, pinned
//	Send   Notice.snapshot ----------->  offered   is it wanted?
//	lend   <------------------- Fetch    pull      several at once, paced by
//	       piece --------------------->            the leader; resumed
//	                                     verify    whole files, and the volume
//	                                     receive   raft's message, to raft
//	                                     Install   raft accepts it
//	done   <------------- Notice.taken
//
// What the member has fetched stays on its disk until it fetches another
// snapshot, so that neither a lost connection nor a restart begins anew.
type snapshots struct {
	cfg   snapshotsConfig
	ctx   context.Context
	stop  context.CancelFunc
	owned sync.WaitGroup

	mu      sync.Mutex // not held over I/O or a call out
	closed  bool
	made    map[string]*madeSnapshot
	offers  map[gearsfs.MemberID]*offer
	loans   []loan
	lending bool
	pull    *pull // what this node fetches itself
}

var _ replica.Snapshots = (*snapshots)(nil)

// madeSnapshot is a snapshot of this node's state.
type madeSnapshot struct {
	*persist.Snapshot

	// Guarded by snapshots.mu.
	users int
	idle  *time.Timer // closes it; nil while there are users
}

// offer is a snapshot that a member is to fetch.
type offer struct {
	to     gearsfs.MemberID
	notice *wire.Notice
	made   *madeSnapshot
	answer chan error // of capacity 1

	heard time.Time // when the member last said something; guarded by snapshots.mu
}

// loan is a piece that a member asks for.
type loan struct {
	to   gearsfs.MemberID
	want *wire.Fetch
	done func(*wire.Response)
}

func makeSnapshots(cfg snapshotsConfig) *snapshots {
	s := &snapshots{
		cfg:    cfg,
		made:   make(map[string]*madeSnapshot),
		offers: make(map[gearsfs.MemberID]*offer),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	cfg.mesh.cfg.offered, cfg.mesh.cfg.answered, cfg.mesh.cfg.lend = s.offered, s.answered, s.lend
	return s
}

// group is what the snapshots are for; nil before the mesh's Begin.
func (s *snapshots) group() Group {
	if st := s.cfg.mesh.station.Load(); st != nil {
		return st.group
	}
	return nil
}

// spawn begins a goroutine that close waits for.
func (s *snapshots) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spawnLocked(f)
}

func (s *snapshots) spawnLocked(f func()) bool {
	if !s.closed {
		s.owned.Go(f)
	}
	return !s.closed
}

// Make implements replica.Snapshots.
func (s *snapshots) Make(done func(replica.SnapshotMeta, error)) {
	if !s.spawn(func() { done(s.make()) }) {
		done(replica.SnapshotMeta{}, gearsfs.ErrClosed)
	}
}

func (s *snapshots) make() (replica.SnapshotMeta, error) {
	s.retire()
	snap, err := s.cfg.data.MakeSnapshot()
	if err != nil {
		return replica.SnapshotMeta{}, fmt.Errorf("make a snapshot: %w", err)
	}
	info, err := volumeIn(snap)
	if err != nil {
		return replica.SnapshotMeta{}, errors.Join(fmt.Errorf("make a snapshot: %w", err), snap.Close())
	}
	s.cfg.log.Info("a snapshot is made", "id", snap.ID, "index", info.Index, "bytes", snap.Bytes)
	made := &madeSnapshot{Snapshot: snap, users: 1}
	s.mu.Lock()
	s.made[snap.ID] = made
	s.mu.Unlock()
	return replica.SnapshotMeta{Index: info.Index, Term: info.Term, Conf: info.Conf, Data: made}, nil
}

// volumeIn reads what a snapshot says of its volume.
func volumeIn(snap interface{ Reader() (persist.View, error) }) (file.VolumeInfo, error) {
	view, err := snap.Reader()
	if err != nil {
		return file.VolumeInfo{}, err
	}
	info, err := file.ReadVolume(view)
	return info, errors.Join(err, view.Close())
}

// Drop implements replica.Snapshots.
func (s *snapshots) Drop(meta replica.SnapshotMeta) { s.release(meta.Data.(*madeSnapshot)) }

// release ends one use of a snapshot. The last one leaves it to whoever comes
// back for it soon.
func (s *snapshots) release(made *madeSnapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	made.users--
	if made.users == 0 && !s.closed {
		made.idle = time.AfterFunc(snapshotIdle, func() { s.spawn(s.retire) })
	}
}

// retire closes the snapshots that nobody uses.
func (s *snapshots) retire() {
	s.mu.Lock()
	var idle []*madeSnapshot
	for id, made := range s.made {
		if made.users == 0 {
			if made.idle != nil {
				made.idle.Stop()
			}
			delete(s.made, id)
			idle = append(idle, made)
		}
	}
	s.mu.Unlock()
	for _, made := range idle {
		if err := made.Close(); err != nil {
			s.cfg.log.Warn("a snapshot that is not needed any more is still there", "id", made.ID, "error", err)
		}
	}
}

// use finds a snapshot for one more user.
func (s *snapshots) use(id string) *madeSnapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	made := s.made[id]
	if made != nil {
		made.users++
		if made.idle != nil {
			made.idle.Stop()
			made.idle = nil
		}
	}
	return made
}

var errReplaced = gearsfs.ErrCancelled.Because("another snapshot is sent instead")

// Send implements replica.Snapshots.
func (s *snapshots) Send(to gearsfs.MemberID, message []byte, meta replica.SnapshotMeta, done func(error)) {
	group := s.group()
	if group == nil {
		done(gearsfs.ErrBusy.Because("the node is starting"))
		return
	}
	made := s.use(meta.Data.(*madeSnapshot).ID)
	if made == nil {
		done(gearsfs.ErrNotFound.Because("the snapshot is not there any more"))
		return
	}
	snap := &wire.Snapshot{
		Id: made.ID, Index: meta.Index, Term: meta.Term, Message: message, LeaderTerm: group.Status().Term,
		Files: make([]*wire.SnapshotFile, len(made.Files)),
	}
	for i, f := range made.Files {
		snap.Files[i] = &wire.SnapshotFile{Name: f.Name, Bytes: f.Bytes, Crc32C: f.Sum}
	}
	o := &offer{to: to, made: made, answer: make(chan error, 1), heard: time.Now(), notice: &wire.Notice{Snapshot: snap}}
	s.mu.Lock()
	old := s.offers[to]
	began := s.spawnLocked(func() { done(s.carry(o)) })
	if began {
		s.offers[to] = o
	}
	s.mu.Unlock()
	if old != nil {
		old.end(errReplaced)
	}
	if !began {
		s.release(made)
		done(gearsfs.ErrClosed)
	}
}

func (o *offer) end(err error) {
	select {
	case o.answer <- err:
	default: // it has one already
	}
}

// carry has an offer answered, and takes it back then.
func (s *snapshots) carry(o *offer) error {
	err := s.repeat(o)
	s.mu.Lock()
	if s.offers[o.to] == o {
		delete(s.offers, o.to)
	}
	s.mu.Unlock()
	s.release(o.made)
	return err
}

// repeat says an offer again until the member has answered it.
func (s *snapshots) repeat(o *offer) error {
	ticker := time.NewTicker(offerEvery)
	defer ticker.Stop()
	s.cfg.mesh.say(o.to, o.notice)
	for {
		select {
		case err := <-o.answer:
			return err
		case <-s.ctx.Done():
			return gearsfs.ErrClosed
		case <-ticker.C:
		}
		s.mu.Lock()
		silence := time.Since(o.heard)
		s.mu.Unlock()
		status := s.group().Status()
		switch {
		case status.Leader != status.ID:
			return gearsfs.ErrNotLeader
		case silence > offerPatience:
			_, why := s.cfg.mesh.reachable(o.to)
			return gearsfs.ErrNoNode.Because("nothing was heard from %s for %v: %s", s.nameOf(o.to), offerPatience, why)
		case silence > offerEvery:
			s.cfg.mesh.say(o.to, o.notice)
		}
	}
}

// answered is told what a member says to an offer.
func (s *snapshots) answered(from gearsfs.MemberID, n *wire.Notice) {
	s.mu.Lock()
	o := s.offers[from]
	if o == nil || o.notice.Snapshot.Id != n.SnapshotId {
		s.mu.Unlock()
		return
	}
	o.heard = time.Now()
	s.mu.Unlock()
	switch {
	case n.Refused != "":
		o.end(gearsfs.ErrCancelled.Because("refused: %s", n.Refused))
	case n.Taken != 0:
		o.end(nil)
	}
}

// lend takes a request for a piece of a snapshot; done is called once.
func (s *snapshots) lend(to gearsfs.MemberID, want *wire.Fetch, done func(*wire.Response)) {
	if err := s.queueLoan(loan{to, want, done}); err != nil {
		done(answer.Failure(err))
	}
}

func (s *snapshots) queueLoan(l loan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return gearsfs.ErrClosed
	case l.want.Length > pieceBytes:
		return gearsfs.ErrTooBig.Because("a piece has at most %d bytes", pieceBytes)
	case len(s.loans) >= loansMax:
		return gearsfs.ErrOverload
	}
	if o := s.offers[l.to]; o != nil && o.notice.Snapshot.Id == l.want.Id {
		o.heard = time.Now()
	}
	s.loans = append(s.loans, l)
	if !s.lending {
		s.lending = s.spawnLocked(s.lendAll)
	}
	return nil
}

// lendAll sends the pieces that are asked for, one after the other.
func (s *snapshots) lendAll() {
	for {
		s.mu.Lock()
		if len(s.loans) == 0 {
			s.loans, s.lending = nil, false
			s.mu.Unlock()
			return
		}
		next := s.loans[0]
		s.loans = s.loans[1:]
		s.mu.Unlock()
		piece, err := s.read(next.want)
		if err != nil {
			next.done(answer.Failure(err))
			continue
		}
		next.done(&wire.Response{Data: piece})
	}
}

func (s *snapshots) read(want *wire.Fetch) ([]byte, error) {
	if err := s.cfg.pace.wait(s.ctx, int(want.Length)); err != nil {
		return nil, gearsfs.ErrClosed
	}
	made := s.use(want.Id)
	if made == nil {
		return nil, gearsfs.ErrNotFound.Because("the snapshot is not there any more")
	}
	defer s.release(made)
	return made.ReadAt(want.File, want.Offset, int(want.Length))
}

// Install implements replica.Snapshots.
func (s *snapshots) Install(index, term uint64, hard []byte) error {
	s.mu.Lock()
	p := s.pull
	s.mu.Unlock()
	if p == nil || p.snap.Index != index || p.snap.Term != term {
		return gearsfs.ErrDamaged.Because("the snapshot of entry %d was not fetched", index)
	}
	in := p.handed.Load()
	if in == nil {
		return gearsfs.ErrDamaged.Because("the snapshot of entry %d is not fetched yet", index)
	}
	err := s.cfg.replace(func() error { return s.cfg.data.Install(in, index, term, hard) })
	if err != nil {
		return fmt.Errorf("install a snapshot: %w", err)
	}
	s.cfg.log.Info("the state is that of a snapshot", "from", s.nameOf(p.from), "index", index, "bytes", p.total)
	close(p.installed)
	return nil
}

// close ends all that is under way and gives the snapshots up. What was
// fetched stays for the next start. The group must be closed before.
func (s *snapshots) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.owned.Wait()
	s.mu.Lock()
	for _, made := range s.made {
		made.users = 0 // what the group has not dropped
	}
	s.mu.Unlock()
	s.retire()
}

// sameVolume makes sure that what was fetched is what was offered.
func (s *snapshots) sameVolume(in *persist.Incoming, want *wire.Snapshot) error {
	volume := s.cfg.mesh.station.Load().volume
	info, err := volumeIn(in)
	switch {
	case err != nil:
		return err
	case !bytes.Equal(info.ID, volume[:]):
		return gearsfs.ErrForeign.Because("a snapshot of volume %x, not of %s", info.ID, volume)
	case info.Index != want.Index || info.Term != want.Term:
		return gearsfs.ErrDamaged.Because("the snapshot is of entry %d of term %d, not %d of %d", info.Index, info.Term, want.Index, want.Term)
	}
	return nil
}
