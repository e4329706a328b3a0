// Swagger UI on the service's own description; nothing is sent to another host.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", validatorUrl: null });
