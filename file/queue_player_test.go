package file

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// queuePlayer plays random commands of some sessions on machines and the model.
type queuePlayer struct {
	*rig
	twin     *rig // keeps next to nothing in memory
	model    *queueModel
	rng      *rand.Rand
	sessions []*sessionModel
	salt     uint64
	jumps    int
	failed   []*wire.Command // puts that found no room
	entries  []*wire.Entry   // all that was applied, and what it was answered
	answers  [][]*wire.Answer
}

var modelKeys = []string{"a", "b", "data"}

func (p *queuePlayer) newSession() *sessionModel {
	p.salt++
	return &sessionModel{id: gearsfs.SessionID{Minted: int64(p.now), Salt: p.salt}}
}

func (p *queuePlayer) op(s *sessionModel) any {
	key := pick(p.rng, modelKeys)
	switch n := p.rng.IntN(100); {
	case n < 40:
		op := putOp(key)
		for range p.rng.IntN(6) {
			size := p.rng.IntN(20)
			if p.rng.IntN(30) == 0 {
				size = 40 << 10
			}
			op.Records = append(op.Records, p.record(size))
		}
		if p.rng.IntN(8) == 0 {
			op.Records = append(op.Records, &wire.NewRecord{})
		}
		op.Seal = p.rng.IntN(60) == 0
		p.delayPut(op)
		return op
	case n < 42:
		return p.updateOp(key)
	case n < 44:
		return moveOp(key, pick(p.rng, modelKeys), p.rng.Uint64N(4))
	case n < 50:
		return p.transactOp(s)
	case n < 70:
		op := takeOp(1+p.rng.Uint32N(5), key)
		if other := pick(p.rng, modelKeys); other != key {
			op.Keys = append(op.Keys, other)
		}
		op.Lease = p.rng.IntN(2) == 0
		p.boundLease(op)
		return op
	case n < 92:
		if op := p.settleOp(s, 2); op != nil {
			return op
		}
		return takeOp(1, key)
	default:
		return p.configureOp(key)
	}
}

func (p *queuePlayer) configureOp(key string) any {
	switch p.rng.IntN(13) {
	case 8, 9:
		return p.rulesOp(key)
	case 10, 11, 12:
		return p.careOp(key)
	case 0:
		return configure(key, func(c *wire.Configure) { c.Clear = true })
	case 1:
		if key != "data" {
			return configure(key, func(c *wire.Configure) { c.Drop = true })
		}
		return sealOp(key, false)
	case 2, 3, 4:
		return sealOp(key, p.rng.IntN(4) == 0)
	case 5:
		return limitOp(key, 0, 0)
	default:
		return limitOp(key, p.rng.Uint64N(10), p.rng.Uint64N(200))
	}
}

func (p *queuePlayer) expect(s *sessionModel, cmd *wire.Command) (*wire.Answer, error) {
	switch op := cmd.Op.(type) {
	case *wire.Command_Put:
		return p.model.put(s, cmd, op.Put, p.now+1e6)
	case *wire.Command_Update:
		return p.model.update(op.Update, p.now+1e6)
	case *wire.Command_Transact:
		return p.model.transact(s, op.Transact, p.now+1e6)
	case *wire.Command_Move:
		return p.model.move(op.Move, p.now+1e6)
	case *wire.Command_Take:
		return p.model.take(s, op.Take)
	case *wire.Command_Settle:
		return p.model.settle(s, op.Settle)
	case *wire.Command_Configure:
		return p.model.configure(op.Configure)
	}
	panic("no such operation in the model")
}

// apply applies a command on both machines, which must agree.
func (p *queuePlayer) apply(cmd *wire.Command) *wire.Answer {
	p.t.Helper()
	jump := p.jump
	p.twin.jump = jump
	answers := p.entry(cmd)
	encoded, err := cmd.MarshalVT()
	require.NoError(p.t, err)
	logged := new(wire.Command) // the test changes cmd when it tries again
	require.NoError(p.t, logged.UnmarshalVT(encoded))
	p.entries = append(p.entries, &wire.Entry{Time: p.now, Jump: jump, Commands: []*wire.Command{logged}})
	p.answers = append(p.answers, answers)
	p.twin.now = p.now - 1e6
	p.model.flush()
	require.Equal(p.t, answers[0].String(), p.twin.entry(cmd)[0].String(), "two machines differ")
	return answers[0]
}

func (p *queuePlayer) run(s *sessionModel, cmd *wire.Command) {
	p.t.Helper()
	p.pass()
	if p.rng.IntN(3) == 0 {
		s.confirmed = min(s.seq, s.confirmed+p.rng.Uint64N(4))
	}
	cmd.Confirmed = s.confirmed
	if s.known {
		p.model.confirm(s)
	}
	if cmd.Seq < s.confirmed {
		if !s.known {
			cmd = as(gearsfs.Root, &wire.Tick{}) // time has passed in the model
		}
		if a := p.apply(cmd); s.known {
			require.ErrorIs(p.t, answerError(a), gearsfs.ErrSession)
		}
		return
	}
	want, wantErr := p.expect(s, cmd)
	got := p.apply(cmd)
	if wantErr != nil {
		require.ErrorIs(p.t, answerError(got), wantErr, "%v", cmd)
		if cmd.GetTransact() != nil {
			require.EqualValues(p.t, p.model.failed, got.FailedStep, "%v", cmd)
		}
		if cmd.GetPut() != nil && wantErr == error(gearsfs.ErrFull) {
			p.failed = append(p.failed, cmd)
		}
		return
	}
	require.NoError(p.t, answerError(got), "%v", cmd)
	p.compareAnswer(want, got)
	if !s.known {
		s.known = true
		p.model.confirm(s)
	}
	s.done = append(s.done, doneModel{cmd, got})
}

func (p *queuePlayer) compareAnswer(want, got *wire.Answer) {
	p.t.Helper()
	require.Equal(p.t, []uint64{want.FirstSeq, want.LastSeq, want.Count}, []uint64{got.FirstSeq, got.LastSeq, got.Count})
	require.Len(p.t, got.Records, len(want.Records))
	require.Len(p.t, got.Steps, len(want.Steps))
	for i := range want.Steps {
		p.compareAnswer(want.Steps[i], got.Steps[i])
	}
	for i, w := range want.Records {
		g := got.Records[i]
		require.Equal(p.t, []any{w.Key, w.Seq, string(w.Data), w.Type, w.Deliveries, w.Fence, w.Deadline}, []any{g.Key, g.Seq, string(g.Data), g.Type, g.Deliveries, g.Fence, g.Deadline})
	}
}

// held reports whether all that an answer leased is leased still.
func (p *queuePlayer) held(s *sessionModel, a *wire.Answer) bool {
	return !slices.ContainsFunc(a.Records, func(r *wire.TakenRecord) bool {
		return r.Fence != 0 && p.model.find(s, r.Key, r.Fence) == nil
	})
}

func (p *queuePlayer) end(s *sessionModel, forget bool) {
	p.pass()
	p.model.end(s)
	require.Zero(p.t, p.apply(as(gearsfs.Root, &wire.EndSession{
		SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Forget: forget})).Code)
}

func (p *queuePlayer) step() {
	p.jumpSometimes()
	i := p.rng.IntN(len(p.sessions))
	s := p.sessions[i]
	switch n := p.rng.IntN(100); {
	case n < 15 && len(s.done) > 0: // a retry
		d := pick(p.rng, s.done)
		p.pass()
		if !p.held(s, d.answer) {
			p.apply(as(gearsfs.Root, &wire.Tick{}))
			return
		}
		require.Equal(p.t, p.again(s, d.answer).String(), p.apply(d.cmd).String(), "a retry of %v", d.cmd)
	case n < 22 && len(p.failed) > 0: // a put that waited for room
		cmd := p.failed[0]
		p.failed = p.failed[1:]
		for _, s := range p.sessions {
			if s.id.Salt == cmd.SessionSalt {
				put := cmd.GetPut()
				put.Retry, put.Refused = p.rng.IntN(3) == 0, nil
				for _, b := range p.model.blocked[blockedModel{put.Key, s.id}] {
					if put.Retry && b.seq < cmd.Seq && p.rng.IntN(2) == 0 {
						put.Refused = append(put.Refused, b.seq) // its client has given up
					}
				}
				p.run(s, cmd)
			}
		}
	case n < 25:
		forget := p.rng.IntN(2) == 0
		p.end(s, forget)
		if forget {
			p.sessions[i] = p.newSession()
		}
	case n < 26: // closed sessions are forgotten, and nobody comes back
		for i, s := range p.sessions {
			p.end(s, p.rng.IntN(2) == 0)
			p.sessions[i] = nil
		}
		p.now += uint64(gearsfs.SessionTTL)
		for i := range p.sessions {
			p.sessions[i] = p.newSession()
		}
		p.failed = nil
	case n < 28:
		s.seq++
		cmd := by(s.id, as(gearsfs.Root, &wire.Confirm{}))
		cmd.Seq, cmd.Confirmed, cmd.Close = s.seq, s.seq, true
		p.pass()
		p.model.end(s)
		require.Zero(p.t, p.apply(cmd).Code)
		s.confirmed = s.seq
		p.model.confirm(s)
		p.sessions[i] = p.newSession()
	default:
		s.seq++
		cmd := by(s.id, as(gearsfs.Root, p.op(s)))
		cmd.Seq = s.seq
		p.run(s, cmd)
	}
}

// compare compares what the machine shows of the streams with the model.
func (p *queuePlayer) compare() {
	a, err := p.m.Lookup(gearsfs.RootIno, "f", gearsfs.Root)
	if err != nil {
		return
	}
	for _, key := range p.allKeys() {
		st := p.model.streams[key]
		info := p.info(uint64(a.Ino), gearsfs.Key(key))
		if st == nil {
			require.Zero(p.t, info.Version, "stream %q", key)
			continue
		}
		ready, leased, bytes := st.count()
		require.Equal(p.t, []uint64{ready, leased, bytes, st.next}, []uint64{info.Records, info.Leased, info.Bytes, uint64(info.Tail.Seq)}, "stream %q", key)
		require.Equal(p.t, st.sealed, info.Sealed)
		p.compareCare(key, st, info)
		if len(st.recs) > 0 {
			require.EqualValues(p.t, st.recs[0].seq, info.Head.Seq, "stream %q", key)
		}
		records, _ := p.m.Peek(a.Ino, gearsfs.Key(key), PeekWhat{Max: 1000}, gearsfs.Root)
		var want []string
		for _, r := range st.recs {
			if r.ready() {
				want = append(want, r.data)
			}
		}
		require.True(p.t, slices.Equal(want, datas(records)), "stream %q: %q, not %q", key, datas(records), want)
		after := p.rng.Uint64N(st.next)
		records, _ = p.m.Peek(a.Ino, gearsfs.Key(key), PeekWhat{Max: 1000, Follow: true, After: gearsfs.Seq(after)}, gearsfs.Root)
		var wantSeqs, seqs []uint64
		for _, r := range st.recs {
			if r.seq > after {
				wantSeqs = append(wantSeqs, r.seq)
			}
		}
		for _, r := range records {
			seqs = append(seqs, r.Seq)
		}
		require.Equal(p.t, wantSeqs, seqs, "stream %q, newer than %d", key, after)
	}
}

func newQueuePlayer(t *testing.T) *queuePlayer {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	p := &queuePlayer{
		rig: newRig(t), twin: newRig(t), rng: rand.New(rand.NewPCG(seed, 1)),
		model: &queueModel{streams: make(map[string]*streamModel), blocked: make(map[blockedModel][]blockedHere)},
	}
	for range 4 {
		p.sessions = append(p.sessions, p.newSession())
	}
	require.Zero(t, p.apply(as(gearsfs.Root, putOp("data"))).Code)
	p.model.stream("data")
	return p
}

// TestQueueModel: random commands of sessions that retry, close and are
// forgotten, on a machine, on one that keeps next to nothing in memory, and on
// plain lists. All agree after each step.
func TestQueueModel(t *testing.T) {
	p := newQueuePlayer(t)
	for i := range *modelSteps {
		p.twin.m.nodes.max, p.twin.m.streams.max, p.twin.m.sessions.rows.max = 1, 1, 1
		p.m.idsMax, p.twin.m.idsMax = modelIDsMax, modelIDsMax
		p.step()
		p.compare()
		p.check()
		switch p.rng.IntN(100) {
		case 0:
			p.reopen()
		case 1:
			p.twin.reopen()
		}
		if i%100 == 99 {
			require.Equal(t, string(p.dump()), string(p.twin.dump()), "two machines differ")
		}
	}
}
