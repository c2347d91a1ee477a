package orders

// DecodeOrder decodes and checks a body as POST /orders does before it opens a transaction.
func DecodeOrder(body []byte) (Order, error) {
	var asked Request
	if err := decode(body, &asked); err != nil {
		return Order{}, err
	}
	return asked.Order()
}
