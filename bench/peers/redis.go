package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/gearsfs/gearsfs/bench/load"
)

// redisPeer is Redis: a list, or a stream with a group of consumers. Its client
// is our own, as little as these commands need, so that what is measured is the
// server; what it reads it copies once, into a buffer that it keeps.
type redisPeer struct {
	addr   string
	stream bool
}

// The names of the list or stream, and of the group.
const (
	redisKey   = "jobs"
	redisGroup = "workers"
)

func (p *redisPeer) setup(ctx context.Context) error {
	return retry(ctx, p.clear)
}

// clear empties the server and makes a group.
func (p *redisPeer) clear(ctx context.Context) error {
	c, err := dialRESP(ctx, p.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.command("FLUSHALL", "SYNC")
	if p.stream {
		c.command("XGROUP", "CREATE", redisKey, redisGroup, "0", "MKSTREAM")
	}
	if err := c.flush(); err != nil {
		return err
	}
	if _, err := c.expect('+'); err != nil || !p.stream {
		return err
	}
	_, err = c.expect('+')
	return err
}

// redisQueue is the list or stream.
type redisQueue struct {
	*redisPeer
	work   load.Work
	takers atomic.Int64
}

func (p *redisPeer) queue(ctx context.Context, w load.Work) (load.Queue, error) {
	return &redisQueue{redisPeer: p, work: w}, p.clear(ctx)
}

func (q *redisQueue) Current(context.Context) error { return nil }

func (q *redisQueue) Putter(ctx context.Context) (load.Putter, error) {
	c, err := dialRESP(ctx, q.addr)
	return &redisPutter{c, q.stream, q.work.Payload()}, err
}

func (q *redisQueue) Taker(ctx context.Context) (load.Taker, error) {
	c, err := dialRESP(ctx, q.addr)
	if q.stream {
		return &redisStreamTaker{respConn: c, name: fmt.Sprint("c", q.takers.Add(1))}, err
	}
	return &redisListTaker{respConn: c, wait: q.work.Do == load.Both || q.work.Do == load.Wake}, err
}

type redisPutter struct {
	respConn
	stream bool
	data   []byte
}

// Put pushes all records with one command; a stream has a command for each,
// and all are sent together.
func (c *redisPutter) Put(_ context.Context, n int) error {
	replies := 1
	if c.stream {
		replies = n
		for range n {
			c.begin(5)
			c.words("XADD", redisKey, "*", "d")
			c.word(c.data)
		}
	} else {
		c.begin(2 + n)
		c.words("RPUSH", redisKey)
		for range n {
			c.word(c.data)
		}
	}
	if err := c.flush(); err != nil {
		return err
	}
	for range replies {
		_, n, err := c.header()
		if err != nil {
			return err
		}
		if c.stream { // its id
			if _, err := c.r.Discard(n + len("\r\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *redisPutter) Fill(ctx context.Context, n int) error { return c.Put(ctx, n) }

func (c *redisPutter) Waiting(context.Context) (bool, error) {
	c.command("INFO", "clients")
	if err := c.flush(); err != nil {
		return false, err
	}
	text, err := c.bulk(nil)
	return bytes.Contains(text, []byte("blocked_clients:1")), err
}

// redisListTaker pops, which is for good.
type redisListTaker struct {
	respConn
	wait bool
	data []byte // of the last records
}

func (c *redisListTaker) Take(_ context.Context, n int) (int, error) {
	switch {
	case n == 1 && c.wait:
		c.command("BLPOP", redisKey, "0")
	case n == 1:
		c.command("LPOP", redisKey)
	default:
		c.command("LPOP", redisKey, strconv.Itoa(n))
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	c.data = c.data[:0]
	var err error
	got := 1
	if n > 1 {
		if got, err = c.expect('*'); err != nil {
			return 0, err
		}
	} else if c.wait {
		if _, err = c.expect('*'); err != nil {
			return 0, err
		}
		if c.data, err = c.bulk(c.data); err != nil { // the list's name
			return 0, err
		}
	}
	if got < 1 {
		return 0, load.ErrEmpty
	}
	for range got {
		if c.data, err = c.bulk(c.data); err != nil {
			return 0, err
		}
	}
	return got, nil
}

func (c *redisListTaker) Ack(context.Context) error { return nil }

func (c *redisListTaker) Chain(ctx context.Context, n int) error {
	_, err := c.Take(ctx, n)
	return err
}

// redisStreamTaker is a consumer of the group. What it has acknowledged it
// deletes, as every other queue does; both commands are sent together.
type redisStreamTaker struct {
	respConn
	name string
	data []byte   // of the last records
	ids  [][]byte // of what is not acknowledged
}

func (c *redisStreamTaker) Take(_ context.Context, n int) (int, error) {
	c.addRead(n)
	if err := c.flush(); err != nil {
		return 0, err
	}
	return c.read()
}

func (c *redisStreamTaker) Ack(context.Context) error {
	c.addAck()
	if err := c.flush(); err != nil {
		return err
	}
	return c.acked()
}

func (c *redisStreamTaker) Chain(_ context.Context, n int) error {
	acks := len(c.ids) > 0
	if acks {
		c.addAck()
	}
	c.addRead(n)
	if err := c.flush(); err != nil {
		return err
	}
	if acks {
		if err := c.acked(); err != nil {
			return err
		}
	}
	_, err := c.read()
	return err
}

func (c *redisStreamTaker) addRead(n int) {
	c.command("XREADGROUP", "GROUP", redisGroup, c.name, "COUNT", strconv.Itoa(n), "BLOCK", "0", "STREAMS", redisKey, ">")
}

func (c *redisStreamTaker) addAck() {
	c.begin(3 + len(c.ids))
	c.words("XACK", redisKey, redisGroup)
	for _, id := range c.ids {
		c.word(id)
	}
	c.begin(2 + len(c.ids))
	c.words("XDEL", redisKey)
	for _, id := range c.ids {
		c.word(id)
	}
}

func (c *redisStreamTaker) acked() error {
	for range 2 {
		n, err := c.expect(':')
		if err != nil {
			return err
		}
		if n != len(c.ids) {
			return fmt.Errorf("%d of %d were acknowledged", n, len(c.ids))
		}
	}
	c.ids = c.ids[:0]
	return nil
}

// read reads the records of one stream: [[key, [[id, [field, value]], ...]]].
func (c *redisStreamTaker) read() (int, error) {
	var err error
	c.data = c.data[:0]
	for range 2 {
		if _, err = c.expect('*'); err != nil {
			return 0, err
		}
	}
	if c.data, err = c.bulk(c.data); err != nil {
		return 0, err
	}
	n, err := c.expect('*')
	if err != nil {
		return 0, err
	}
	c.ids = c.ids[:0]
	for i := range n {
		if _, err := c.expect('*'); err != nil {
			return 0, err
		}
		if cap(c.ids) > i {
			c.ids = c.ids[:i+1]
		} else {
			c.ids = append(c.ids, nil)
		}
		if c.ids[i], err = c.bulk(c.ids[i][:0]); err != nil {
			return 0, err
		}
		if _, err := c.expect('*'); err != nil {
			return 0, err
		}
		for range 2 {
			if c.data, err = c.bulk(c.data); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}
