package dgm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// Depose ends the tenure, as if another node led; Reinstate begins the next.
func (v *Volume) Depose() { v.leads(false, 0) }

func (v *Volume) Reinstate() { v.leads(true, v.group.Status().Term) }

// Tenure is the latest.
func (v *Volume) Tenure() *Tenure {
	v.mu.Lock()
	defer v.mu.Unlock()
	return &Tenure{v.last}
}

type Tenure struct{ t *tenure }

// Begun returns when it serves or never will.
func (t *Tenure) Begun() { <-t.t.begun }

// Leftovers says what is still on its way or waits in a tenure, "" for nothing.
func (t *Tenure) Leftovers() string {
	t.t.gate.mu.Lock()
	commands, bytes, held := t.t.gate.commands, t.t.gate.bytes, len(t.t.gate.held)
	t.t.gate.mu.Unlock()
	t.t.mu.Lock()
	defer t.t.mu.Unlock()
	w := &t.t.waits
	waits := len(t.t.turns)
	for _, s := range t.t.sessions {
		waits += s.waits + len(s.held)
	}
	if commands+bytes+held+w.count+len(w.ids)+len(w.leases)+len(w.files)+len(w.names)+len(w.unlinking)+waits+len(t.t.ending) == 0 {
		return ""
	}
	return fmt.Sprintf("%d commands of %d bytes, %d held; %d wait (%d for sessions) at %d files and %d names; %d unlinks, %d ends",
		commands, bytes, held, w.count, waits, len(w.files), len(w.names), len(w.unlinking), len(t.t.ending))
}

// Orphans says which files without a name are there and who holds them: what the
// state has, and what the tenure that serves counts.
func (v *Volume) Orphans() string {
	held, err := v.machine.Held()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	t := v.tenure.Load()
	if t == nil {
		return fmt.Sprintf("no tenure serves; held: %v", held)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, inos := range held {
		fmt.Fprintf(&b, "%s holds %v", id, inos)
		if s := t.sessions[id]; s == nil {
			b.WriteString(", and is no session; ")
		} else {
			fmt.Fprintf(&b, ", and has open %v (away %t); ", s.opens, t.absent[id] != nil)
		}
	}
	return b.String()
}

// Serves says whether a tenure serves.
func (v *Volume) Serves() bool { return v.tenure.Load() != nil }

// ReplaceState does as if a snapshot had been installed.
func (v *Volume) ReplaceState() error { return v.replaceState(func() error { return nil }) }

// HoldBack has the gate hold everything back that comes; LetThrough lets the
// next n pass together, and LetAllThrough all, and what comes.
func (t *Tenure) HoldBack() {
	t.t.gate.mu.Lock()
	defer t.t.gate.mu.Unlock()
	t.t.gate.commands += gateCommands
}

func (t *Tenure) LetThrough(n int) {
	g := &t.t.gate
	g.mu.Lock()
	var next []*op
	for _, ops := range g.held[:n] {
		for _, o := range ops {
			g.commands++
			g.bytes += o.bytes
		}
		next = append(next, ops...)
	}
	g.held = g.held[n:]
	g.mu.Unlock()
	if len(next) > 0 {
		t.t.proposeOps(next)
	}
}

func (t *Tenure) LetAllThrough() {
	held, _ := t.Busy()
	t.LetThrough(held)
	t.t.gate.mu.Lock()
	t.t.gate.commands -= gateCommands
	t.t.gate.mu.Unlock()
}

// Busy says how many the gate holds back and how many wait.
func (t *Tenure) Busy() (held, waiting int) {
	t.t.gate.mu.Lock()
	held = len(t.t.gate.held)
	t.t.gate.mu.Unlock()
	t.t.mu.Lock()
	defer t.t.mu.Unlock()
	return held, t.t.waits.count
}

// PutsUnderWay says whether a session has a put that is proposed.
func (t *Tenure) PutsUnderWay() bool {
	t.t.mu.Lock()
	defer t.t.mu.Unlock()
	for _, s := range t.t.sessions {
		if s.puts.first != nil {
			return true
		}
	}
	return false
}

// Whole returns when the healer knows of nothing that is missing.
func (v *Volume) Whole(ctx context.Context) error { return v.payloads.Whole(ctx) }

// WriteExtents asks for a write of what another file may have in the store.
func (r *Remote) WriteExtents(ctx context.Context, ino gearsfs.Ino) error {
	_, err := r.apply(ctx, &wire.Command{Op: &wire.Command_Write{Write: &wire.Write{Ino: uint64(ino), Extents: []*wire.Extent{
		{Origin: 1, Segment: 1, Size: 4096, Length: 4096, Sums: make([]byte, 4)},
	}}}})
	return err
}

// Resolved follows a path for each session as its requests do, and says how many
// remembered where it leads. An error is of one for whom it really leads elsewhere.
func (v *Volume) Resolved(path string) (remembered int, err error) {
	t := v.tenure.Load()
	t.mu.Lock()
	sessions := slices.Collect(maps.Values(t.sessions))
	t.mu.Unlock()
	for _, s := range sessions {
		if s.trails.find(path, v.machine.Names()) != nil {
			remembered++
		}
		var found *wire.Target
		err := t.resolve(s, path, &found)
		dir, name, ino, really := v.machine.ResolveTarget(path, s.caller)
		if ino != 0 {
			dir, name = 0, ""
		}
		if gearsfs.CodeOf(err) != gearsfs.CodeOf(really) ||
			err == nil && (found.Ino != uint64(ino) || found.Dir != uint64(dir) || found.Name != name) {
			return 0, fmt.Errorf("%s leads user %d to %v, %v, and really to %q in %d or to %d, %v", path, s.caller.UID, found, err, name, dir, ino, really)
		}
	}
	return remembered, nil
}

// OpensAtOnce opens a file in a session of the node that leads, and reports whether
// that was answered at once, by who asked: a majority answers on another goroutine.
// err is for a session that this node does not have, or not any more.
func (t *Tenure) OpensAtOnce(id gearsfs.SessionID, ino gearsfs.Ino, made bool) (atOnce bool, err error) {
	t.t.mu.Lock()
	s := t.t.sessions[id]
	var at *peer
	if s != nil {
		at = s.at
	}
	t.t.mu.Unlock()
	if s == nil {
		return false, gearsfs.ErrSession
	}
	answers := make(chan error, 1)
	t.t.open(at, s, ino, made, replica.Vouch{}, func(resp *wire.Response) { answers <- errorOf(resp) })
	atOnce = len(answers) > 0
	return atOnce, <-answers
}

// Over is the kind of connection that a Remote has, once it has one.
func (r *Remote) Over(ctx context.Context) (transport.PeerKind, error) {
	conn, err := r.current(ctx)
	if err != nil {
		return "", err
	}
	return conn.Peer().Kind, nil
}

// AnswerWhole is what a leader is answered who asks whether the node may vote.
func (v *Volume) AnswerWhole(ctx context.Context) error {
	_, err := v.answerWhole(ctx)
	return err
}
