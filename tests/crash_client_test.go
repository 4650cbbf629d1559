package tests

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A crashClient does random things in a directory of its own, and writes down
// in which state that should be after each. states[i] is the state after i
// operations; it is there before the operation is asked for.
type crashClient struct {
	dir     string
	ino     gearsfs.Ino
	rng     *rand.Rand
	m       dgm.Manager
	serial  int
	states  []string
	started atomic.Int64 // operations that were asked for
	durable atomic.Int64 // operations that are sure to survive

	queue   bool // the queue file exists
	streams map[string][]crashRecord
	seqs    [2]uint64
	late    uint64   // the last seq of the stream of records that are delayed
	copies  bool     // the queue has a copy,
	copied  string   // and what that is
	names   []string // of empty files
	bytes   []byte   // of the file written in place; nil where it is missing
	byteIno gearsfs.Ino
}

type crashRecord struct {
	seq  uint64
	data string
}

var crashKeys = []gearsfs.Key{"a", "b"}

// work does n things on a session of its own.
func (c *crashClient) work(v *dgm.Volume, n int) error {
	m, err := v.Local(dgm.Client{Caller: gearsfs.Root})
	if err != nil {
		return err
	}
	c.m = m
	defer m.Close()
	ctx := context.Background()
	if err := c.did("dir\n", false, func() error {
		attr, err := m.Make(ctx, gearsfs.RootIno, c.dir, dgm.Make{Mode: 0o040755})
		c.ino = attr.Ino
		return err
	}); err != nil {
		return err
	}
	for range n {
		if err := c.step(ctx); err != nil {
			return fmt.Errorf("%s, operation %d: %w", c.dir, c.started.Load(), err)
		}
	}
	return nil
}

// did does one thing that leads to a state; durable ones are on disk then, and
// so is all that was before.
func (c *crashClient) did(state string, durable bool, do func() error) error {
	c.states = append(c.states, state)
	c.started.Add(1)
	if err := do(); err != nil {
		return err
	}
	if durable {
		c.durable.Store(c.started.Load())
	}
	return nil
}

// state describes what should be there, as dump does.
func (c *crashClient) state() string {
	var out strings.Builder
	out.WriteString("dir\n")
	all := slices.Clone(c.names)
	if c.bytes != nil {
		all = append(all, "bytes")
	}
	if c.queue {
		all = append(all, "queue")
	}
	if c.copies {
		all = append(all, "queue-copy")
	}
	slices.Sort(all)
	for _, name := range all {
		fmt.Fprintf(&out, "%s\n", name)
		switch name {
		case "bytes":
			fmt.Fprintf(&out, "  %q\n", c.bytes)
		case "queue":
			out.WriteString(c.dumpQueue())
		case "queue-copy":
			out.WriteString(c.copied)
		}
	}
	return out.String()
}

func (c *crashClient) dumpQueue() string {
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(c.streams)) {
		for _, r := range c.streams[key] {
			fmt.Fprintf(&out, "  %s %d %s\n", key, r.seq, r.data)
		}
	}
	return out.String()
}

func (c *crashClient) step(ctx context.Context) error {
	which := c.rng.IntN(2)
	key := crashKeys[which]
	path := gearsfs.At("/" + c.dir + "/queue")
	held := c.streams[string(key)]
	switch dice := c.rng.IntN(20); {
	case dice < 4:
		return c.putSome(ctx, path, which)
	case dice < 6 && len(held) > 0:
		n := 1 + c.rng.IntN(min(3, len(held)))
		c.streams[string(key)] = held[n:]
		return c.did(c.state(), true, func() error {
			return c.takeSome(ctx, dgm.Take{File: path, Keys: []gearsfs.Key{key}, Max: n, NoWait: true}, held[:n])
		})
	case dice < 8 && len(held) > 0:
		return c.leaseOne(ctx, path, key, held)
	case dice < 10:
		return c.changeNames(ctx)
	case dice < 18:
		return c.stepQueue(ctx, path, which)
	default:
		return c.writeBytes(ctx)
	}
}

func (c *crashClient) putSome(ctx context.Context, path gearsfs.File, which int) error {
	key := crashKeys[which]
	var records []gearsfs.NewRecord
	for range 1 + c.rng.IntN(3) {
		c.serial++
		c.seqs[which]++
		data := fmt.Sprintf("%d %s", c.serial, strings.Repeat("x", c.rng.IntN(3000)))
		records = append(records, gearsfs.NewRecord{Data: []byte(data)})
		c.streams[string(key)] = append(slices.Clip(c.streams[string(key)]), crashRecord{c.seqs[which], data})
	}
	c.queue = true
	return c.did(c.state(), true, func() error {
		got, err := c.m.Put(ctx, dgm.Put{File: path, Key: key, Records: records})
		if err == nil && uint64(got.Last) != c.seqs[which] {
			err = fmt.Errorf("the last record is %d, not %d", got.Last, c.seqs[which])
		}
		return err
	})
}

// takeSome takes records, which must be those wanted.
func (c *crashClient) takeSome(ctx context.Context, take dgm.Take, want []crashRecord) error {
	got, err := c.m.Take(ctx, take)
	if err != nil {
		return err
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d records were taken, not %d", len(got), len(want))
	}
	for i, r := range got {
		if uint64(r.Place.Seq) != want[i].seq || string(r.Data) != want[i].data {
			return fmt.Errorf("record %d was taken, not %d", r.Place.Seq, want[i].seq)
		}
	}
	return nil
}

// leaseOne leases a record, which changes nothing that survives, and gives it
// back or acknowledges it.
func (c *crashClient) leaseOne(ctx context.Context, path gearsfs.File, key gearsfs.Key, held []crashRecord) error {
	var receipt gearsfs.Receipt
	if err := c.did(c.state(), true, func() error {
		got, err := c.m.Take(ctx, dgm.Take{File: path, Keys: []gearsfs.Key{key}, NoWait: true, Lease: true})
		if err == nil {
			receipt = *got[0].Receipt
		}
		return err
	}); err != nil {
		return err
	}
	back := c.rng.IntN(2) == 0
	if !back {
		c.streams[string(key)] = held[1:]
	}
	return c.did(c.state(), true, func() error {
		return c.m.Settle(ctx, dgm.Settle{Receipts: []gearsfs.Receipt{receipt}, Return: back})
	})
}

// changeNames makes, renames or removes an empty file; now and then it syncs.
func (c *crashClient) changeNames(ctx context.Context) error {
	if c.rng.IntN(4) == 0 {
		return c.did(c.state(), true, func() error { return c.m.Sync(ctx) })
	}
	c.serial++
	name := fmt.Sprintf("n%d", c.serial)
	if len(c.names) == 0 || c.rng.IntN(2) == 0 {
		c.names = append(slices.Clip(c.names), name)
		return c.did(c.state(), false, func() error {
			_, err := c.m.Make(ctx, c.ino, name, dgm.Make{Mode: 0o100644})
			return err
		})
	}
	old := c.names[0]
	c.names = slices.Clone(c.names[1:])
	if c.rng.IntN(2) == 0 {
		return c.did(c.state(), false, func() error { return c.m.Unlink(ctx, c.ino, old) })
	}
	c.names = append(c.names, name)
	return c.did(c.state(), false, func() error {
		return c.m.Rename(ctx, dgm.Rename{Dir: c.ino, Name: old, NewDir: c.ino, NewName: name})
	})
}

// writeBytes writes into a file, truncates or extends it.
func (c *crashClient) writeBytes(ctx context.Context) error {
	if c.bytes == nil {
		c.bytes = []byte{}
		return c.did(c.state(), false, func() error {
			attr, err := c.m.Make(ctx, c.ino, "bytes", dgm.Make{Mode: 0o100644})
			c.byteIno = attr.Ino
			return err
		})
	}
	c.serial++
	if c.rng.IntN(4) == 0 {
		n := c.rng.IntN(len(c.bytes) + 100)
		grown := append(slices.Clone(c.bytes), make([]byte, 100)...)
		c.bytes = grown[:n]
		size := uint64(n)
		return c.did(c.state(), false, func() error {
			_, err := c.m.SetAttr(ctx, c.byteIno, dgm.SetAttr{Size: &size})
			return err
		})
	}
	at := c.rng.IntN(len(c.bytes) + 20)
	text := []byte(strings.Repeat(fmt.Sprintf("%d.", c.serial), 1+c.rng.IntN(40)))
	grown := append(slices.Clone(c.bytes), make([]byte, max(0, at+len(text)-len(c.bytes)))...)
	copy(grown[at:], text)
	c.bytes = grown
	return c.did(c.state(), false, func() error {
		_, err := c.m.Write(ctx, c.byteIno, gearsfs.Pos(at), text)
		return err
	})
}
