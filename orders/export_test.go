package orders

// DecodeOrder is what POST /orders does with a body before it opens a transaction.
func DecodeOrder(body []byte) (Order, error) {
	var asked Request
	if err := decode(body, &asked); err != nil {
		return Order{}, err
	}
	return asked.Order()
}
