package tests

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// stepQueue does one of the things with the queue that are more than a put or a
// take. Each of them is durable.
func (c *crashClient) stepQueue(ctx context.Context, path gearsfs.File, which int) error {
	key, other := crashKeys[which], crashKeys[1-which]
	held := c.streams[string(key)]
	switch dice := c.rng.IntN(7); {
	case dice == 0:
		return c.update(ctx, path, which)
	case dice == 1 && len(held) > 0:
		return c.transact(ctx, path, which, held)
	case dice == 2 && len(held) > 0:
		n := 1 + c.rng.IntN(min(3, len(held)))
		c.streams[string(key)] = held[n:]
		for _, r := range held[:n] {
			c.add(1-which, r.data)
		}
		return c.did(c.state(), true, func() error {
			moved, err := c.m.Move(ctx, path, key, other, uint64(n))
			if err == nil && moved != uint64(n) {
				err = fmt.Errorf("%d records were moved, not %d", moved, n)
			}
			return err
		})
	case dice == 3:
		return c.putTwice(ctx, path, which)
	case dice == 4 && len(held) > 0:
		return c.leaseLong(ctx, path, key, held)
	case dice == 5 && c.queue:
		return c.copyQueue(ctx, path)
	}
	return c.putLate(ctx, path)
}

// add is the state behind a put.
func (c *crashClient) add(which int, data string) {
	key := string(crashKeys[which])
	c.seqs[which]++
	c.streams[key] = append(slices.Clip(c.streams[key]), crashRecord{c.seqs[which], data})
	c.queue = true
}

func (c *crashClient) someData() string {
	c.serial++
	return fmt.Sprintf("%d", c.serial)
}

// wasLast checks where a put went.
func (c *crashClient) wasLast(which int, got dgm.PutResult, err error) error {
	if err == nil && uint64(got.Last) != c.seqs[which] {
		err = fmt.Errorf("the record is %d, not %d", got.Last, c.seqs[which])
	}
	return err
}

func (c *crashClient) update(ctx context.Context, path gearsfs.File, which int) error {
	data := c.someData()
	c.streams[string(crashKeys[which])] = nil
	c.add(which, data)
	return c.did(c.state(), true, func() error {
		got, err := c.m.Update(ctx, dgm.Update{File: path, Key: crashKeys[which], Record: gearsfs.NewRecord{Data: []byte(data)}})
		return c.wasLast(which, got, err)
	})
}

// transact takes from one stream and puts into the other, or replaces what is
// there.
func (c *crashClient) transact(ctx context.Context, path gearsfs.File, which int, held []crashRecord) error {
	data, update := c.someData(), c.rng.IntN(2) == 0
	c.streams[string(crashKeys[which])] = held[1:]
	key, record := crashKeys[1-which], gearsfs.NewRecord{Data: []byte(data)}
	put := dgm.Step{Put: &dgm.Put{File: path, Key: key, Records: []gearsfs.NewRecord{record}}}
	if update {
		c.streams[string(key)] = nil
		put = dgm.Step{Update: &dgm.Update{File: path, Key: key, Record: record}}
	}
	c.add(1-which, data)
	head := gearsfs.Seq(held[0].seq)
	return c.did(c.state(), true, func() error {
		got, err := c.m.Transact(ctx, dgm.Transact{NoWait: true, Steps: []dgm.Step{
			put, {Condition: &dgm.Condition{File: path, Key: crashKeys[which], Head: &head}},
			{Take: &dgm.Take{File: path, Keys: crashKeys[which : which+1]}},
		}})
		if err != nil {
			return err
		}
		return c.wasLast(1-which, got[0].Put, nil)
	})
}

// putTwice puts a record with an id twice: the second time it is known.
func (c *crashClient) putTwice(ctx context.Context, path gearsfs.File, which int) error {
	data := c.someData()
	c.add(which, data)
	put := dgm.Put{File: path, Key: crashKeys[which], Records: []gearsfs.NewRecord{{Data: []byte(data), ID: "id " + data}}}
	for range 2 {
		if err := c.did(c.state(), true, func() error {
			got, err := c.m.Put(ctx, put)
			return c.wasLast(which, got, err)
		}); err != nil {
			return err
		}
	}
	return nil
}

// leaseLong leases a record by receipt, with a deadline; it is acknowledged or
// given back late.
func (c *crashClient) leaseLong(ctx context.Context, path gearsfs.File, key gearsfs.Key, held []crashRecord) error {
	var settle dgm.Settle
	take := dgm.Take{File: path, Keys: []gearsfs.Key{key}, NoWait: true, Lease: true, LeaseFor: time.Hour, ByReceipt: true}
	if err := c.did(c.state(), true, func() error {
		got, err := c.m.Take(ctx, take)
		if err == nil {
			settle.Receipts = []gearsfs.Receipt{*got[0].Receipt}
		}
		return err
	}); err != nil {
		return err
	}
	if err := c.did(c.state(), true, func() error {
		extend := settle
		extend.Extend = time.Minute
		return c.m.Settle(ctx, extend)
	}); err != nil {
		return err
	}
	if settle.Return = c.rng.IntN(2) == 0; !settle.Return {
		c.streams[string(key)] = held[1:]
	}
	return c.did(c.state(), true, func() error { return c.m.Settle(ctx, settle) })
}

// copyQueue copies the file with all its streams. Where it was copied before, the
// copy is replaced.
func (c *crashClient) copyQueue(ctx context.Context, path gearsfs.File) error {
	c.copies, c.copied = true, c.dumpQueue()
	return c.did(c.state(), true, func() error {
		return c.m.CopyFile(ctx, path, gearsfs.At("/"+c.dir+"/queue-copy"))
	})
}

// putLate puts a record that can be taken soon, and leases one for a moment:
// these times may be over at any entry.
func (c *crashClient) putLate(ctx context.Context, path gearsfs.File) error {
	key, data := gearsfs.Key("late"), c.someData()
	c.late++
	c.streams[string(key)] = append(slices.Clip(c.streams[string(key)]), crashRecord{c.late, data})
	c.queue = true
	if err := c.did(c.state(), true, func() error {
		_, err := c.m.Put(ctx, dgm.Put{
			File: path, Key: key, Records: []gearsfs.NewRecord{{Data: []byte(data)}}, Delay: time.Duration(1 + c.rng.IntN(3e6)),
		})
		return err
	}); err != nil {
		return err
	}
	return c.did(c.state(), true, func() error {
		_, err := c.m.Take(ctx, dgm.Take{
			File: path, Keys: []gearsfs.Key{key}, NoWait: true, Lease: true, LeaseFor: time.Duration(1 + c.rng.IntN(3e6)), ByReceipt: true,
		})
		if errors.Is(err, gearsfs.ErrEmpty) {
			err = nil // its time has not come
		}
		return err
	})
}
