package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/gearsfs/gearsfs/bench/load"
)

// beanstalkPeer is beanstalkd. Its client is our own, as Redis's is.
type beanstalkPeer struct{ addr string }

func (p *beanstalkPeer) setup(ctx context.Context) error {
	return retry(ctx, func(ctx context.Context) error {
		c, err := dialLines(ctx, p.addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// beanstalkQueue is a tube.
type beanstalkQueue struct {
	*beanstalkPeer
	work load.Work
	tube string
}

func (p *beanstalkPeer) queue(_ context.Context, w load.Work) (load.Queue, error) {
	return &beanstalkQueue{p, w, fmt.Sprintf("jobs-%x", start)}, nil
}

func (q *beanstalkQueue) Current(context.Context) error { return nil }

func (q *beanstalkQueue) Putter(ctx context.Context) (load.Putter, error) {
	c, err := dialLines(ctx, q.addr)
	if err != nil {
		return nil, err
	}
	p := &beanstalkPutter{beanstalkConn{c}, q.tube, q.work.Payload()}
	return p, p.call("USING ", "use ", q.tube)
}

func (q *beanstalkQueue) Taker(ctx context.Context) (load.Taker, error) {
	c, err := dialLines(ctx, q.addr)
	if err != nil {
		return nil, err
	}
	t := &beanstalkTaker{beanstalkConn: beanstalkConn{c}}
	if err := t.call("WATCHING ", "watch ", q.tube); err != nil {
		return nil, err
	}
	return t, t.call("WATCHING ", "ignore default")
}

// beanstalkConn speaks beanstalkd's protocol.
type beanstalkConn struct{ *lineConn }

func (c beanstalkConn) add(words ...string) {
	for _, word := range words {
		c.out = append(c.out, word...)
	}
	c.out = append(c.out, '\r', '\n')
}

// answer reads a line and returns what follows its first word.
func (c beanstalkConn) answer(want string) ([]byte, error) {
	line, err := c.line()
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(line, []byte(want))
	if !ok {
		return nil, fmt.Errorf("beanstalkd: %s", line)
	}
	return rest, nil
}

func (c beanstalkConn) call(want string, words ...string) error {
	c.add(words...)
	if err := c.flush(); err != nil {
		return err
	}
	_, err := c.answer(want)
	return err
}

type beanstalkPutter struct {
	beanstalkConn
	tube string
	data []byte
}

// Put puts with priority 0, without delay, and with a minute for whoever
// reserves it. Several commands are sent together.
func (c *beanstalkPutter) Put(_ context.Context, n int) error {
	for range n {
		c.out = append(c.out, "put 0 0 60 "...)
		c.out = strconv.AppendInt(c.out, int64(len(c.data)), 10)
		c.out = append(c.out, '\r', '\n')
		c.out = append(c.out, c.data...)
		c.out = append(c.out, '\r', '\n')
	}
	if err := c.flush(); err != nil {
		return err
	}
	for range n {
		if _, err := c.answer("INSERTED "); err != nil {
			return err
		}
	}
	return nil
}

func (c *beanstalkPutter) Fill(ctx context.Context, n int) error { return c.Put(ctx, n) }

func (c *beanstalkPutter) Waiting(context.Context) (bool, error) {
	c.add("stats-tube ", c.tube)
	if err := c.flush(); err != nil {
		return false, err
	}
	count, err := c.answer("OK ")
	if err != nil {
		return false, err
	}
	n, err := strconv.Atoi(string(count))
	if err != nil {
		return false, err
	}
	text, err := c.bytes(nil, n)
	return bytes.Contains(text, []byte("current-waiting: 1")), err
}

type beanstalkTaker struct {
	beanstalkConn
	id   []byte // reserved
	data []byte
}

// Take reserves one job.
func (c *beanstalkTaker) Take(context.Context, int) (int, error) {
	c.add("reserve")
	if err := c.flush(); err != nil {
		return 0, err
	}
	return 1, c.reserved()
}

func (c *beanstalkTaker) reserved() error {
	head, err := c.answer("RESERVED ")
	if err != nil {
		return err
	}
	id, count, _ := bytes.Cut(head, []byte(" "))
	n, err := strconv.Atoi(string(count))
	if err != nil {
		return err
	}
	c.id = append(c.id[:0], id...)
	c.data, err = c.bytes(c.data[:0], n)
	return err
}

func (c *beanstalkTaker) addDelete() {
	c.out = append(c.out, "delete "...)
	c.out = append(c.out, c.id...)
	c.out = append(c.out, '\r', '\n')
	c.id = c.id[:0]
}

func (c *beanstalkTaker) Ack(context.Context) error {
	c.addDelete()
	if err := c.flush(); err != nil {
		return err
	}
	_, err := c.answer("DELETED")
	return err
}

// Chain is for one job, as Take is.
func (c *beanstalkTaker) Chain(context.Context, int) error {
	deletes := len(c.id) > 0
	if deletes {
		c.addDelete()
	}
	c.add("reserve")
	if err := c.flush(); err != nil {
		return err
	}
	if deletes {
		if _, err := c.answer("DELETED"); err != nil {
			return err
		}
	}
	return c.reserved()
}
