package file

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

var (
	modelSeed  = flag.Uint64("seed", 0, "seed of the random operations; 0 picks one")
	modelSteps = flag.Int("steps", 1500, "how many random operations")
)

// step applies one operation everywhere and compares the outcomes.
func (p *player) step() {
	o := p.next()
	p.log = append(p.log, fmt.Sprintf("%d: %T %.120v -> %v", p.index+1, o.op, o.op, o.want))
	cmd := by(o.by, as(gearsfs.Root, o.op))
	p.index++
	answers, err := p.m.Apply(p.index, 1, &wire.Entry{Time: p.now, Commands: []*wire.Command{cmd}})
	require.NoError(p.t, err)
	a := answers[0]
	err = answerError(a)
	defer p.follow()
	for errors.Is(err, gearsfs.ErrFragmented) || errors.Is(err, gearsfs.ErrOversize) { // of both of the rows at the ends, maybe
		p.waiting, p.answers = append(p.waiting, cmd), append(p.answers, proto.CloneOf(a))
		if a.Shrink != nil {
			p.shrink(a.Shrink)
		} else {
			p.rewrite(a.Fragmented)
		}
		a, err = p.again(cmd)
	}
	p.waiting, p.answers = append(p.waiting, cmd), append(p.answers, proto.CloneOf(a))
	if p.rng.IntN(3) == 0 {
		defer p.catchUp()
	}
	if _, isTake := o.op.(*wire.Take); isTake && a.Code == uint32(gearsfs.ErrEmpty.Code) {
		return
	}
	if o.want == nil && err != nil && p.refused != nil && p.refused(err, o.op) {
		return
	}
	if o.want != nil {
		require.ErrorIs(p.t, err, o.want)
		return
	}
	if o.mayFail != nil && errors.Is(err, o.mayFail) {
		return
	}
	require.NoError(p.t, err)
	p.blocks.fill(a)
	o.done(a)
}

// follow looks after the blocks that an entry has freed.
func (p *player) follow() {
	p.blocks.follow(p.m, p.seen.freed)
	p.seen.freed = p.seen.freed[:0]
}

// rewrite does what a node does with a command that a row has too many extents
// for.
func (p *player) rewrite(row *wire.FragmentedRow) {
	p.rewrites++
	data := p.blocks.readAll(row.Extents)
	one := p.blocks.extent(data)
	p.orders(&wire.Rewrite{Ino: row.Ino, Key: row.Key, Pos: row.Pos, Seq: row.Seq,
		Was: row.Extents, Extents: ExtentsToWire([]gearsfs.Extent{one})})
}

// shrink does what a node does with a command that would remove too much, or with
// inodes that are doomed.
func (p *player) shrink(what *wire.Shrink) *wire.Answer {
	p.shrinks++
	return p.orders(proto.CloneOf(what))
}

// orders applies a command of the node's own.
func (p *player) orders(op any) *wire.Answer {
	cmd := as(gearsfs.Root, op)
	a, err := p.again(cmd)
	require.NoError(p.t, err)
	p.waiting, p.answers = append(p.waiting, cmd), append(p.answers, proto.CloneOf(a))
	return a
}

// again applies a command as another entry of the same time.
func (p *player) again(cmd *wire.Command) (*wire.Answer, error) {
	p.index++
	answers, err := p.m.Apply(p.index, 1, &wire.Entry{Time: p.now, Commands: []*wire.Command{cmd}})
	require.NoError(p.t, err)
	return answers[0], answerError(answers[0])
}

// removeAll takes all names away: then no page is left.
func (p *player) removeAll() {
	for _, id := range p.sessions {
		p.do(&wire.EndSession{SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Forget: true})
	}
	for _, dir := range p.model.inos(func(n *modelInode) bool { return isDir(n.mode) && n.nlink > 0 }) {
		for name, ino := range p.model.inodes[dir].children {
			if !isDir(p.model.inodes[ino].mode) {
				p.do(&wire.Unlink{Dir: uint64(dir), Name: name, OpenIno: uint64(ino)})
			}
		}
	}
	for p.shrink(&wire.Shrink{}).Count > 0 {
		p.check()
	}
	p.follow()
	p.check()
	require.Empty(p.t, p.blocks.live, "pages are left")
	require.Zero(p.t, p.m.volume.Shared)
}

// catchUp gives the twin, as one entry, what the Machine was given one by one,
// and lets time pass.
func (p *player) catchUp() {
	if len(p.waiting) > 0 {
		answers, err := p.twin.m.Apply(p.index, 1, &wire.Entry{Time: p.now, Commands: p.waiting})
		require.NoError(p.t, err)
		require.Len(p.t, answers, len(p.answers))
		for i, a := range answers {
			require.True(p.t, proto.Equal(a, p.answers[i]), "answers differ: %v and %v", p.answers[i], a)
		}
		p.waiting, p.answers = nil, nil
	}
	p.now += 1e6
}

// compareTwin compares the tables of both machines.
func (p *player) compareTwin() {
	p.catchUp()
	require.Equal(p.t, string(p.dump()), string(p.twin.dump()), "two machines differ")
}

func (p *player) compare(ino gearsfs.Ino, n *modelInode) {
	a := p.attr(ino)
	require.Equal(p.t, []uint32{n.mode, n.nlink, n.uid, n.gid}, []uint32{a.Mode, a.Nlink, a.UID, a.GID}, "inode %d", ino)
	require.Equal(p.t, []int64{int64(n.mtime), int64(n.ctime)}, []int64{a.Mtime.UnixNano(), a.Ctime.UnixNano()}, "inode %d", ino)
	if !isFile(n.mode) {
		return
	}
	require.Equal(p.t, []uint64{uint64(n.head), uint64(len(n.val) - n.head)}, []uint64{uint64(a.Head), a.Size}, "inode %d", ino)
	require.True(p.t, bytes.Equal(n.val, append(make([]byte, 0), p.read(ino, 0, len(n.val)+10)...)), "inode %d: bytes", ino)
}

func (p *player) compareAll() {
	for _, ino := range p.model.inos(func(*modelInode) bool { return true }) {
		n := p.model.inodes[ino]
		p.compare(ino, n)
		for name, value := range n.xattrs {
			got, err := p.m.GetXattr(ino, name, root)
			require.NoError(p.t, err)
			require.Equal(p.t, value, string(got))
		}
		if !isDir(n.mode) {
			continue
		}
		entries, err := p.m.ReadDir(ino, "", 1000, root)
		require.NoError(p.t, err)
		require.Len(p.t, entries, len(n.children))
		for _, e := range entries {
			require.Equal(p.t, n.children[e.Name], e.Attr.Ino, "name %q in %d", e.Name, ino)
			a, err := p.m.Lookup(ino, e.Name, root)
			require.NoError(p.t, err)
			require.Equal(p.t, e.Attr, a)
		}
	}
	require.EqualValues(p.t, len(p.model.inodes), p.m.Usage().Inodes)
}

// TestModel applies random operations to a Machine and to a plain model, and
// to a second Machine that keeps almost nothing in memory: all must agree, and
// the tables be sound, after each step.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	p := &player{rig: newRig(t), twin: newRig(t), rng: rand.New(rand.NewPCG(seed, 0))}
	p.model = newModel(p.now)
	p.blocks = newFakeBlocks(t, p.rng)
	for i := range 3 {
		p.sessions = append(p.sessions, gearsfs.SessionID{Minted: rigStart, Salt: uint64(i)})
	}
	defer func() {
		if t.Failed() {
			for _, l := range p.log[max(0, len(p.log)-30):] {
				t.Log(l)
			}
		}
	}()
	for i := range *modelSteps {
		p.twin.m.nodes.max, p.twin.m.dentries.max, p.twin.m.streams.max = 2, 2, 1
		p.m.shrinkMax, p.twin.m.shrinkMax = 2, 2
		p.step()
		p.check()
		if p.m.Doomed() && p.rng.IntN(4) == 0 {
			p.shrink(&wire.Shrink{})
			p.follow()
			p.check()
		}
		if ino, n := p.file(); n != nil {
			p.compare(ino, n)
		}
		switch {
		case i%50 == 49:
			p.compareAll()
		case p.rng.IntN(100) == 0:
			p.reopen()
		case p.rng.IntN(60) == 0:
			p.twin.reopen()
		}
		if i%100 == 99 {
			p.compareTwin()
		}
	}
	p.compareAll()
	p.compareTwin()
	p.removeAll()
	t.Logf("%d rows were rewritten, %d removals were in steps", p.rewrites, p.shrinks)
	require.Positive(t, p.shrinks)
}
