package dgm

import (
	"math"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// What sessions have open: an inode that loses its last name stays for them.
// Only the node that leads knows it, the state learns of it with the unlink,
// which names the holders. Over a change of leader that works because
//
//  1. a session with something open has a row in the state, so the next leader
//     adopts it;
//  2. an adopted session counts as having open whatever is unlinked before it
//     is back, and what the state says that it holds;
//  3. when it comes back its hello says what it has open, and what it does not
//     is released; when it does not come back its end releases all.

// open counts an open of ino that a session asks for on a connection, once the state
// knows the session, and answers with the inode's attributes where it is still there;
// those of one that was made for it need not be certain.
func (t *tenure) open(p *peer, s *session, ino gearsfs.Ino, made bool, by replica.Vouch, done func(*wire.Response)) {
	epoch, rowed, err := t.opened(p, s, ino)
	if err != nil {
		done(failure(err))
		return
	}
	finish := func() { t.finishOpen(s, epoch, ino, made, by, done) }
	if rowed {
		t.behindUnlinks(ino, finish)
		return
	}
	t.confirm(s, func(err error) {
		if err != nil {
			t.unopen(s, epoch, ino)
			done(failure(err))
			return
		}
		t.behindUnlinks(ino, finish)
	})
}

// opened counts an open of ino, in an epoch of the session. A client that has gone to
// another connection has said there what it has open, and asks for this one again.
func (t *tenure) opened(p *peer, s *session, ino gearsfs.Ino) (epoch uint32, rowed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over != nil:
		return 0, false, t.over
	case s.ended:
		return 0, false, gearsfs.ErrClosed
	case s.at != p:
		return 0, false, gearsfs.ErrCancelled
	}
	s.opens[ino]++
	t.opens[ino]++
	return s.epoch.Load(), s.rowed, nil
}

// behindUnlinks calls then when no unlink of ino that is on its way can be
// without the opens of now.
func (t *tenure) behindUnlinks(ino gearsfs.Ino, then func()) {
	t.mu.Lock()
	u := t.waits.unlinking[ino]
	if u != nil {
		u.after = append(u.after, then)
	}
	t.mu.Unlock()
	if u == nil {
		then()
	}
}

func (t *tenure) finishOpen(s *session, epoch uint32, ino gearsfs.Ino, made bool, by replica.Vouch, done func(*wire.Response)) {
	v := t.vol
	if !v.enter() { // it has waited for an unlink
		done(failure(gearsfs.ErrClosed))
		return
	}
	defer v.leave()
	attr, err := v.machine.GetAttr(ino)
	if err != nil || attr.Nlink == 0 && t.late(s, ino) {
		t.unopen(s, epoch, ino)
		v.answer(nil, gearsfs.ErrStale, v.alone(), by, done)
		return
	}
	// Alone nobody else can have changed it, and what the mount does need not be
	// on disk.
	v.answer(attrResponse(attrToWire(attr)), nil, made || v.alone(), by, done)
}

// openMade counts an open of what an operation has made, and ends the operation.
// Where it can't be counted the answer does not say so, and the client opens by
// itself. That is so where the client has said hello since it asked: it asks again
// under the same number, and that attempt counts.
func (t *tenure) openMade(o *op, answer *wire.Answer) {
	s, ino := o.sess, gearsfs.Ino(answer.GetAttr().GetIno())
	unopened := func() { o.done(&wire.Response{Answer: answer}) }
	t.mu.Lock()
	counts := ino != 0 && t.over == nil && !s.ended && s.epoch.Load() == o.epoch
	if counts {
		s.opens[ino]++
		t.opens[ino]++
		s.rowed = true // the command has seen to that
	}
	t.mu.Unlock()
	if !counts {
		unopened()
		return
	}
	t.behindUnlinks(ino, func() {
		if !t.vol.enter() { // it has waited for an unlink
			o.fail(gearsfs.ErrClosed)
			return
		}
		defer t.vol.leave()
		attr, err := t.vol.machine.GetAttr(ino)
		if err != nil || attr.Nlink == 0 && t.late(s, ino) {
			t.unopen(s, o.epoch, ino)
			unopened()
			return
		}
		o.done(&wire.Response{Answer: &wire.Answer{Attr: attrToWire(attr)}, Opened: true})
	})
}

// late says that an inode had lost its last name when a session opened it first,
// so that it may not be among those for whom it stays.
func (t *tenure) late(s *session, ino gearsfs.Ino) bool {
	t.mu.Lock()
	first := s.opens[ino] <= 1
	t.mu.Unlock()
	return first && t.vol.machine.IsOrphan(ino)
}

// unopen takes an open back that was counted in an epoch of the session: in a later
// one its client has said what it has open. The last one of an inode without a name
// lets the inode go.
func (t *tenure) unopen(s *session, epoch uint32, ino gearsfs.Ino) {
	t.mu.Lock()
	last := false
	if s.epoch.Load() == epoch && s.opens[ino] > 0 {
		last = s.opens[ino] == 1
		decrement(s.opens, ino, 1)
		decrement(t.opens, ino, 1)
	}
	t.mu.Unlock()
	if last {
		t.letGo(s, ino)
	}
}

// releasedBy takes back opens that a request says to be over, one for each inode that
// it names. It reports false where they do not count: the session has said, or will
// say, what it has open on another connection.
func (t *tenure) releasedBy(p *peer, s *session, inos []uint64) bool {
	if !t.vol.enter() {
		return false
	}
	defer t.vol.leave()
	var last []gearsfs.Ino
	t.mu.Lock()
	if s.at != p || s.ended || t.over != nil {
		t.mu.Unlock()
		return false
	}
	for _, ino := range inos {
		ino := gearsfs.Ino(ino)
		n := s.opens[ino]
		if n == 0 {
			continue
		}
		decrement(s.opens, ino, 1)
		decrement(t.opens, ino, 1)
		if n == 1 {
			last = append(last, ino)
		}
	}
	t.mu.Unlock()
	for _, ino := range last {
		t.letGo(s, ino)
	}
	return true
}

// declareLocked makes a session's opens what its client says that they are (an
// inode and how often, in turn), and returns those that it has no more.
func (t *tenure) declareLocked(s *session, opens []uint64) (released []gearsfs.Ino) {
	before := s.opens
	s.opens = make(map[gearsfs.Ino]int, len(opens)/2)
	for i := 0; i+1 < len(opens); i += 2 {
		s.opens[gearsfs.Ino(opens[i])] += int(min(opens[i+1], math.MaxInt32))
	}
	for ino, n := range s.opens {
		t.opens[ino] += n
	}
	for ino, n := range before {
		decrement(t.opens, ino, n)
		if s.opens[ino] == 0 {
			released = append(released, ino)
		}
	}
	slices.Sort(released)
	return released
}

// letGo tells the state that a session does not have an inode open any more,
// where that has no name left: behind the unlinks that name the session.
func (t *tenure) letGo(s *session, ino gearsfs.Ino) {
	t.behindUnlinks(ino, func() {
		t.mu.Lock()
		again := s.opens[ino] > 0 || s.ended
		t.mu.Unlock()
		if again || !t.vol.machine.IsOrphan(ino) {
			return
		}
		t.order(s, &wire.Command{
			SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Checked: true,
			Op: &wire.Command_Release{Release: &wire.Release{Ino: uint64(ino)}},
		}, nil)
	})
}

func decrement(counts map[gearsfs.Ino]int, ino gearsfs.Ino, by int) {
	if counts[ino] -= by; counts[ino] <= 0 {
		delete(counts, ino)
	}
}

// unlinking is an unlink on its way through the log: opens of its inode wait
// for it, since it may not know them as holders.
type unlinking struct {
	count int
	after []func()
}

// holders names the sessions that have ino open, or may have, for a command that
// may remove its last name, and notes that the command is on its way; unlinked
// undoes that. Until then the named do not end in the log: what they hold is
// released there, and what makes them hold more has to come before.
func (t *tenure) holders(ino gearsfs.Ino) (out []uint64, named []*session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.waits.unlinking[ino]
	if u == nil {
		u = new(unlinking)
		t.waits.unlinking[ino] = u
	}
	u.count++
	for _, s := range t.absent {
		if s.opens[ino] == 0 {
			s.opens[ino] = 1
			t.opens[ino]++
		}
	}
	if t.opens[ino] > 0 {
		for _, s := range t.sessions {
			if s.opens[ino] > 0 && s.door.enter() { // it is not shut before it is none of the sessions
				named = append(named, s)
			}
		}
	}
	slices.SortFunc(named, func(a, b *session) int { return compareSessions(a.id, b.id) })
	for _, s := range named {
		out = append(out, uint64(s.id.Minted), s.id.Salt)
	}
	return out, named
}

func (t *tenure) unlinked(ino gearsfs.Ino, named []*session) {
	t.mu.Lock()
	u := t.waits.unlinking[ino]
	u.count--
	var after []func()
	if u.count == 0 {
		delete(t.waits.unlinking, ino)
		after = u.after
	}
	t.mu.Unlock()
	for _, s := range named {
		if s.door.leave() {
			t.proposeEnd(s)
		}
	}
	for _, f := range after {
		f()
	}
}
